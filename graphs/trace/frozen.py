"""Find what a trace would freeze: clocks and random numbers of Python that a model's scores depend on.

A trace keeps the value that such a call had. The model is run twice on the same rows, which costs far less than a
second trace: while it runs, calls of clocks are recorded with their lines, and so are lines that draw random numbers.
The second run is at another time of another day. A call that does not change the scores, such as one that times a
layer, is no fault.
"""

from __future__ import annotations

import datetime
import gc
import os
import pickle
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphs.base.errors import UgsepError, printable_line
from graphs.trace.trace_errors import is_model_code

__all__ = ["check_same_scores_later"]

_Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

#: 115 days, 18 hours, 47 minutes and 41.7 seconds: another second, minute, hour, weekday and month.
_LATER = 10_003_661.7
_CLOCKS = (
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time",
    "process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns",
    "localtime", "gmtime", "ctime", "asctime", "strftime",
)  # fmt: skip
_ENTROPY: tuple[Any, ...] = (os.urandom, uuid.uuid1, uuid.uuid4)
#: A branch taken at random is the same in two runs half of the time.
_RUNS = 8
#: Two runs of the same kernels on the same rows differ by nothing, or by the order of a few sums.
_SAME = 1e-6


def check_same_scores_later(run: _Run, rows: Mapping[str, Tensor]) -> None:
    """Check that the model gives the same rows the same scores at another time, and with other random numbers.

    Args:
        run: the model itself, on its inputs by name.
        rows: an example of the inputs; on the meta device nothing can be compared.

    Raises:
        UgsepError: scores that change; names the calls and their lines.
    """
    if any(value.device.type == "meta" for value in rows.values()):
        return
    calls: dict[str, None] = {}
    with _recording(calls):
        first = run(rows)
    changed = None
    with _another_day(calls):
        for _ in range(_RUNS if calls else 1):
            second = run(rows)
            changed = changed or next((name for name in first if _differ(first[name], second[name])), None)
    if changed is None:
        return
    if not calls:  # a generator that the first run made and kept
        with _recording(calls):
            run(rows)
    if calls:
        raise UgsepError(
            f"the model's '{changed}' changes with {' and '.join(calls)}, which a trace would freeze; pass the value "
            "as an input"
        )
    raise UgsepError(
        f"the model gives the same rows another '{changed}' when it is called again; call .eval() and keep counters, "
        "caches and random numbers out of forward"
    )


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.device.type == "meta" or a.shape != b.shape:
        return a.shape != b.shape
    wide, other = a.detach().double(), b.detach().double()
    bound = _SAME * max(1.0, float(wide.nan_to_num(0.0, 0.0, 0.0).abs().max())) if wide.numel() else 0.0
    return not torch.allclose(wide, other, rtol=0.0, atol=bound, equal_nan=True)


@contextmanager
def _recording(calls: dict[str, None]) -> Iterator[None]:
    """Record calls of clocks, and lines of the model that draw numbers from Python's or NumPy's generators."""
    generators = _generators()
    before = _states(generators)

    def on_call(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and _is_clock(called):
            # Generators without a seed ask the system for one, wherever the model makes them.
            drawn = called in _ENTROPY and not is_model_code(frame.f_code.co_filename)
            _record(calls, frame, "random numbers" if drawn else f"{called.__name__}()")

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal before
        if event == "call":
            return on_line if is_model_code(frame.f_code.co_filename) else None
        now = _states(generators)
        if now != before and event in ("line", "return"):
            before = now
            _record(calls, frame, "random numbers", previous.get(frame, frame.f_lineno))
        previous[frame] = frame.f_lineno
        return on_line

    previous: dict[FrameType, int] = {}
    traced, profiled = sys.gettrace(), sys.getprofile()
    if traced is None:  # a debugger keeps its own
        sys.settrace(on_line)
    sys.setprofile(on_call)
    try:
        yield
    finally:
        sys.setprofile(profiled)
        sys.settrace(traced)
        previous.clear()  # frames keep the tensors of the run
        generators.clear()


def _is_clock(called: Any) -> bool:
    name, owner = getattr(called, "__name__", ""), getattr(called, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, datetime.date):
        return name in ("now", "today", "utcnow")
    return (owner is time and name in _CLOCKS) or called in _ENTROPY


def _record(calls: dict[str, None], frame: FrameType | None, what: str, line: int = 0) -> None:
    while frame is not None and not is_model_code(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is not None:
        file = Path(frame.f_code.co_filename).name
        calls[printable_line(f"{what} at {file}:{line or frame.f_lineno}")] = None


def _generators() -> list[random.Random | np.random.RandomState | np.random.BitGenerator]:
    """Return every random generator of the process: a model may hold one of its own, at any depth.

    A ``numpy.random.Generator`` draws from its ``BitGenerator``; a ``RandomState`` also keeps a number for later.
    """
    kinds = (random.Random, np.random.RandomState, np.random.BitGenerator)
    # The type alone: isinstance also asks objects for their class, and some warn.
    return [o for o in gc.get_objects() if issubclass(type(o), kinds) and type(o) is not random.SystemRandom]


def _states(generators: Sequence[random.Random | np.random.RandomState | np.random.BitGenerator]) -> list[int]:
    """Return fingerprints of the states of generators."""
    return [hash(g.getstate() if isinstance(g, random.Random) else pickle.dumps(_numpy_state(g))) for g in generators]


def _numpy_state(generator: np.random.RandomState | np.random.BitGenerator) -> Any:
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.state


@contextmanager
def _another_day(calls: Mapping[str, None]) -> Iterator[None]:
    """Let clocks show a later time in the model's modules; does nothing if no call was recorded."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    own = [m for m in list(sys.modules.values()) if is_model_code(getattr(m, "__file__", None) or "<built-in>")]
    for module in (time, datetime, *own) if calls else ():
        names = vars(module)
        for name, value in list(names.items()):
            for clock, later in _LATER_CLOCKS:
                if value is clock:
                    changed.append((names, name, value))
                    names[name] = later
    try:
        yield
    finally:
        for names, name, value in changed:
            names[name] = value


def _later(clock: Callable[..., Any]) -> Callable[..., Any]:
    now, local = time.time, time.localtime  # not the later ones
    if clock in (time.localtime, time.gmtime, time.ctime):
        return lambda seconds=None: clock(now() + _LATER if seconds is None else seconds)
    if clock in (time.asctime, time.strftime):
        given = 0 if clock is time.asctime else 1  # arguments before the moment
        return lambda *args: clock(*args, *([local(now() + _LATER)] if len(args) == given else []))
    shift = int(_LATER * 1e9) if clock.__name__.endswith("_ns") else _LATER
    return lambda *args: clock(*args) + shift


class _LaterDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _LaterDatetime:
        return super().now(tz) + datetime.timedelta(seconds=_LATER)

    @classmethod
    def today(cls) -> _LaterDatetime:
        return cls.now()

    @classmethod
    def utcnow(cls) -> _LaterDatetime:
        return cls.now(datetime.UTC).replace(tzinfo=None)


class _LaterDate(datetime.date):
    @classmethod
    def today(cls) -> _LaterDate:
        return super().today() + datetime.timedelta(seconds=_LATER)


_LATER_CLOCKS: tuple[tuple[Any, Any], ...] = (
    *((getattr(time, name), _later(getattr(time, name))) for name in _CLOCKS),
    (datetime.datetime, _LaterDatetime),
    (datetime.date, _LaterDate),
)
