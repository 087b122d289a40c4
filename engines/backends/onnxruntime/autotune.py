"""Which form of a graph runs fastest here: forms timed in turn on random rows while an engine is built."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engines.backends.contract import Array, TensorSpec
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

#: A second form that saves less than this share of the time is noise, and not shipped.
LEAST_GAIN = 0.02
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 2.0, 9, 60
#: By how much of the largest output two forms may differ: what a few int8 activations do that round to the next step,
#: and what all of them do that are rounded with other scales, per row or per block of a row.
_ROUNDING, _OTHER_SCALES = 1e-2, 0.1


class Session(Protocol):
    """The part of an ONNX Runtime session that is measured."""

    def run(self, names: None, feeds: dict[str, Array]) -> list[Any]:
        """Run once."""
        ...


@dataclass(frozen=True)
class UserForms:
    """Times in milliseconds for ``candidates`` items of one user, both forms interleaved in one run."""

    candidates: int
    broadcast_ms: float
    gather_ms: float

    @property
    def pays(self) -> bool:
        """Whether broadcasting saves more than noise."""
        return self.broadcast_ms < (1 - LEAST_GAIN) * self.gather_ms

    def figures(self) -> dict[str, float]:
        """Return both times as figures of a built engine."""
        return {"one_user_broadcast_ms": self.broadcast_ms, "one_user_gather_ms": self.gather_ms}

    def __str__(self) -> str:
        """Return choice and times as one readable line."""
        return (
            f"one user, {self.candidates} candidates: state broadcast {self.broadcast_ms:.3f} ms, gathered "
            f"{self.gather_ms:.3f} ms; {'broadcast' if self.pays else 'gathered'} is used"
        )


@dataclass(frozen=True)
class RowForms:
    """Times in milliseconds of a form for few rows and one for many, by number of rows, smallest first."""

    few: str
    many: str
    ms: Mapping[int, tuple[float, float]]

    @property
    def few_up_to(self) -> int:
        """The most rows up to which the form for few was faster at every measured size; 0: nowhere."""
        most = 0
        for rows, (few, many) in self.ms.items():
            if few >= (1 - LEAST_GAIN) * many:
                break
            most = rows
        return most

    def figures(self) -> dict[str, float]:
        """Return all times as figures of a built engine."""
        return {
            f"{form}_{rows}_rows_ms": ms
            for rows, pair in self.ms.items()
            for form, ms in zip((self.few, self.many), pair, strict=True)
        }

    def __str__(self) -> str:
        """Return choice and times as one readable line."""
        measured = ", ".join(f"{rows} rows {few:.3f} and {many:.3f} ms" for rows, (few, many) in self.ms.items())
        most = self.few_up_to
        choice = f"{self.few} is used up to {most} rows" if most else f"{self.many} is used for any"
        return f"int8 products, {self.few} and {self.many}: {measured}; {choice}"


def measure_user_forms(
    gathering: Session, broadcasting: Session, inputs: tuple[TensorSpec, ...], candidates: int
) -> UserForms:
    """Time both forms on one random request, in turn, and compare what they say.

    Raises:
        UgsepError: the outputs differ by more than rounding.
    """
    feeds = _random_feeds(inputs, "candidates", candidates)
    fewer = {name: value for name, value in feeds.items() if name != USER_INDEX}
    # Sums of the same terms in another order; int8 activations may also round to the next step.
    if not _agree(gathering.run(None, feeds), broadcasting.run(None, fewer), _ROUNDING):
        raise UgsepError("the item graph scores one user's request differently when state is broadcast")
    gather, broadcast = _times([lambda: gathering.run(None, feeds), lambda: broadcasting.run(None, fewer)], _SECONDS)
    return UserForms(candidates, broadcast, gather)


def measure_row_forms(
    few: tuple[str, Session], many: tuple[str, Session], inputs: tuple[TensorSpec, ...], axis: str, usual: int
) -> RowForms:
    """Time two named forms of a graph at 1, 2, 4, .. ``usual`` rows of ``axis``, until the one for few falls behind.

    Raises:
        UgsepError: the outputs differ by more than what rounding activations to int8 can do.
    """
    ladder = [*(1 << power for power in range(usual.bit_length()) if 1 << power < usual), usual]
    found: dict[int, tuple[float, float]] = {}
    for rows in ladder:
        feeds = _random_feeds(inputs, axis, rows)
        if not _agree(many[1].run(None, feeds), few[1].run(None, feeds), _OTHER_SCALES):
            raise UgsepError(f"the graph says something else as {few[0]} than as {many[0]}")
        calls = [_call(few[1], feeds), _call(many[1], feeds)]
        found[rows] = (*_times(calls, _SECONDS / len(ladder)),)
        if found[rows][0] >= (1 - LEAST_GAIN) * found[rows][1]:
            break
    return RowForms(few[0], many[0], found)


def _call(session: Session, feeds: dict[str, Array]) -> Callable[[], Any]:
    return lambda: session.run(None, feeds)


def _agree(ones: Sequence[Array], others: Sequence[Array], tolerance: float) -> bool:
    return all(
        bool(np.abs(one - other).max() <= tolerance * max(1.0, float(np.abs(one).max())))
        for one, other in zip(ones, others, strict=True)
    )


def _times(calls: Sequence[Callable[[], Any]], seconds: float) -> tuple[float, float]:
    """Return the lower quartiles of two calls in milliseconds, timed in turn for so many seconds.

    Not medians: what other work on the machine adds to a call says nothing of the call.
    """
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST_ROUNDS or (time.perf_counter() < end and len(times[0]) < _MOST_ROUNDS):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append((time.perf_counter() - started) * 1e3)
    first, second = (float(np.percentile(taken, 25)) for taken in times)
    return first, second


def _random_feeds(inputs: tuple[TensorSpec, ...], axis: str, rows: int) -> dict[str, Array]:
    """Return ids of row 0, which every table has, and normal numbers; ``rows`` on one axis, one on every other."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple((rows if d == axis else 1) if isinstance(d, str) else d for d in spec.shape)
        floats = np.dtype(spec.dtype).kind == "f"
        feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype) if floats else np.zeros(shape, spec.dtype)
    return feeds
