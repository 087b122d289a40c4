"""The item engine's second form, for requests of one user: whether it is worth having, and a runner of both."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engines.backend import Array, BuiltEngine, Runner, TensorSpec
from graphs.errors import UgsepError
from graphs.names import USER_INDEX, USER_ROWS

#: A second form that saves less than this share of the time is noise, and not shipped.
LEAST_GAIN = 0.02
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 2.0, 3, 60


class Session(Protocol):
    """The part of an ONNX Runtime session that is measured."""

    def run(self, names: None, feeds: dict[str, Array]) -> list[Any]:
        """Run once."""
        ...


@dataclasses.dataclass(frozen=True)
class Forms:
    """Medians in milliseconds for ``candidates`` items of one user, both forms interleaved in one run."""

    candidates: int
    broadcast_ms: float
    gather_ms: float

    @property
    def pays(self) -> bool:
        """Whether broadcasting saves more than noise."""
        return self.broadcast_ms < (1 - LEAST_GAIN) * self.gather_ms

    def figures(self) -> dict[str, float]:
        """Return both medians as figures of a built engine."""
        return {"one_user_broadcast_ms": self.broadcast_ms, "one_user_gather_ms": self.gather_ms}

    def __str__(self) -> str:
        """Return choice and medians as one readable line."""
        return (
            f"one user, {self.candidates} candidates: state broadcast {self.broadcast_ms:.3f} ms, gathered "
            f"{self.gather_ms:.3f} ms; {'broadcast' if self.pays else 'gathered'} is used"
        )


def measure_forms(
    gathering: Session, broadcasting: Session, inputs: tuple[TensorSpec, ...], candidates: int
) -> Forms:
    """Time both forms on one random request, in turn, and compare what they say.

    Raises:
        UgsepError: the outputs differ by more than rounding.
    """
    feeds = {spec.name: _random(spec, candidates) for spec in inputs}
    fewer = {name: value for name, value in feeds.items() if name != USER_INDEX}
    for one, other in zip(gathering.run(None, feeds), broadcasting.run(None, fewer), strict=True):
        # Sums of the same terms in another order; int8 activations may also round to the next step.
        if not np.abs(one - other).max() <= 1e-2 * max(1.0, float(np.abs(one).max())):
            raise UgsepError("the item graph scores one user's request differently when state is broadcast")
    calls: dict[str, Callable[[], Any]] = {
        "broadcast": lambda: broadcasting.run(None, fewer),
        "gather": lambda: gathering.run(None, feeds),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + _SECONDS
    while len(times["gather"]) < _LEAST_ROUNDS or (time.perf_counter() < end and len(times["gather"]) < _MOST_ROUNDS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - started) * 1e3)
    return Forms(candidates, float(np.median(times["broadcast"])), float(np.median(times["gather"])))


def _random(spec: TensorSpec, candidates: int) -> Array:
    """Return ids of row 0, which every table has, and normal numbers; one user, ``candidates`` items."""
    shape = tuple({"users": 1, "candidates": candidates}.get(d, 1) if isinstance(d, str) else d for d in spec.shape)
    if np.dtype(spec.dtype).kind != "f":
        return np.zeros(shape, spec.dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)


def with_both_forms(built: BuiltEngine) -> BuiltEngine:
    """Say in an engine's inputs that ``user_index`` may have one row."""
    return _with_index(built, lambda spec: (dataclasses.replace(spec, shape=(USER_ROWS,)),))


def has_both_forms(built: BuiltEngine) -> bool:
    """Say whether an engine was built with both forms."""
    return any(spec.name == USER_INDEX and spec.shape == (USER_ROWS,) for spec in built.inputs)


def gathering_form(built: BuiltEngine) -> BuiltEngine:
    """Return the engine as the graph for several users has it."""
    return _with_index(built, lambda spec: (dataclasses.replace(spec, shape=("candidates",)),))


def broadcasting_form(built: BuiltEngine) -> BuiltEngine:
    """Return the engine as the graph for one user has it: no ``user_index``, one row of state."""
    one = tuple(
        dataclasses.replace(s, shape=(1, *s.shape[1:])) if s.shape[:1] == ("users",) else s for s in built.inputs
    )
    return _with_index(dataclasses.replace(built, inputs=one), lambda _: ())


def _with_index(built: BuiltEngine, change: Callable[[TensorSpec], tuple[TensorSpec, ...]]) -> BuiltEngine:
    inputs = (change(spec) if spec.name == USER_INDEX else (spec,) for spec in built.inputs)
    return dataclasses.replace(built, inputs=tuple(spec for kept in inputs for spec in kept))


class TwoFormRunner:
    """Requests of one user run on the broadcasting form; the gathering one is loaded with the first of several.

    Each form holds its weights in memory, so a server that only ever scores one user at a time pays for one.
    ``files`` are those of the gathering form: a bundle that was replaced since is not mixed with this one.
    """

    def __init__(self, one: Runner, several: Callable[[], Runner], built: BuiltEngine, files: Sequence[Path]) -> None:
        self._one, self._load = one, several
        self._several: Runner | None = None
        self._state = tuple(s.name for s in built.inputs if s.shape[:1] == ("users",))
        self._files = {file: _identity(file) for file in files}
        self._lock = threading.Lock()
        self._closed = False

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises UgsepError for wrong feeds, an id outside its table, or after ``close``."""
        index = feeds.get(USER_INDEX)
        one_row = index is not None and index.shape == (1,) and index.dtype == np.int64 and index[0] == 0
        if one_row and all(name in feeds and feeds[name].shape[:1] == (1,) for name in self._state):
            return self._one.infer({name: value for name, value in feeds.items() if name != USER_INDEX})
        return self._for_several().infer(feeds)

    def close(self) -> None:
        """Release what was loaded."""
        with self._lock:
            self._closed = True
            self._one.close()
            if self._several is not None:
                self._several.close()

    def _for_several(self) -> Runner:
        with self._lock:
            if self._closed:
                raise UgsepError("the engine is closed; load it again")
            if self._several is None:
                if any(_identity(file) != seen for file, seen in self._files.items()):
                    raise UgsepError(
                        f"{next(iter(self._files)).parent}: replaced since it was loaded, and several users need a "
                        "graph that was not read yet; load the bundle again"
                    )
                self._several = self._load()
            return self._several


def _identity(file: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced; nothing for one that is gone."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
