"""Measure which variant of a graph runs fastest here, on random rows, while an engine is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engines.backends.built_engine import TensorSpec
from engines.backends.contract import Array
from engines.measure.interleave import samples_in_turn
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

#: A variant that saves less than this share of the time is within noise and not shipped.
LEAST_GAIN = 0.02
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 2.0, 9, 60
#: By what share of the largest output two variants may differ: a few int8 activations that round to the next step, or
#: all of them rounded with other scales, per row or per block of a row.
_ROUNDING, OTHER_SCALES = 1e-2, 0.1


class Session(Protocol):
    """The part of an ONNX Runtime session that is measured."""

    def run(self, names: None, feeds: dict[str, Array]) -> list[Any]:
        """Run once."""
        ...


@dataclass(frozen=True)
class UserTimes:
    """Milliseconds for ``candidates`` items of one user, both variants interleaved in one run."""

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
class RowTimes:
    """Milliseconds of a variant for few rows and one for many, by number of rows, smallest first."""

    few: str
    many: str
    ms: Mapping[int, tuple[float, float]]

    @property
    def few_up_to(self) -> int:
        """The row count up to which the variant for few was faster at every measured size; 0 if at none."""
        most = 0
        for rows, (few, many) in self.ms.items():
            if few >= (1 - LEAST_GAIN) * many:
                break
            most = rows
        return most

    def figures(self) -> dict[str, float]:
        """Return all times as figures of a built engine."""
        return {
            f"{variant}_{rows}_rows_ms": ms
            for rows, pair in self.ms.items()
            for variant, ms in zip((self.few, self.many), pair, strict=True)
        }

    def __str__(self) -> str:
        """Return choice and times as one readable line."""
        measured = ", ".join(f"{rows} rows {few:.3f} and {many:.3f} ms" for rows, (few, many) in self.ms.items())
        most = self.few_up_to
        choice = f"{self.few} is used up to {most} rows" if most else f"{self.many} is used for any"
        return f"int8 products, {self.few} and {self.many}: {measured}; {choice}"


def measure_user_variants(
    gathering: Session, broadcasting: Session, inputs: tuple[TensorSpec, ...], candidates: int
) -> UserTimes:
    """Time both variants on one random request, in turn, and compare their outputs.

    Raises:
        UgsepError: the outputs differ by more than rounding.
    """
    feeds = _random_feeds(inputs, "candidates", candidates)
    fewer = {name: value for name, value in feeds.items() if name != USER_INDEX}
    # Sums of the same terms in another order; int8 activations may also round to the next step.
    if not _agree(gathering.run(None, feeds), broadcasting.run(None, fewer), _ROUNDING):
        raise UgsepError("the item graph scores one user's request differently when state is broadcast")
    gather, broadcast = _times([lambda: gathering.run(None, feeds), lambda: broadcasting.run(None, fewer)], _SECONDS)
    return UserTimes(candidates, broadcast, gather)


def measure_row_variants(
    few: tuple[str, Session],
    many: tuple[str, Session],
    inputs: tuple[TensorSpec, ...],
    axis: str,
    usual: int,
    tolerance: float | None = OTHER_SCALES,
) -> RowTimes:
    """Time two named variants at 1, 2, 4, .. ``usual`` rows of ``axis``, until the one for few rows falls behind.

    ``tolerance`` is None for a variant with calibrated scales: random rows saturate it, so they prove nothing.

    Raises:
        UgsepError: the outputs differ by more than ``tolerance``, a share of the largest.
    """
    ladder = [*(1 << power for power in range(usual.bit_length()) if 1 << power < usual), usual]
    found: dict[int, tuple[float, float]] = {}
    for rows in ladder:
        feeds = _random_feeds(inputs, axis, rows)
        outputs = many[1].run(None, feeds), few[1].run(None, feeds)
        if tolerance is not None and not _agree(*outputs, tolerance):
            raise UgsepError(f"the outputs of the graph differ between {few[0]} and {many[0]}")
        calls = [_call(few[1], feeds), _call(many[1], feeds)]
        found[rows] = (*_times(calls, _SECONDS / len(ladder)),)
        if found[rows][0] >= (1 - LEAST_GAIN) * found[rows][1]:
            break
    return RowTimes(few[0], many[0], found)


def _call(session: Session, feeds: dict[str, Array]) -> Callable[[], Any]:
    return lambda: session.run(None, feeds)


def _agree(ones: Sequence[Array], others: Sequence[Array], tolerance: float) -> bool:
    """Return whether two runs agree; a NaN only with a NaN, which a model may give for the empty history of ids 0."""
    for one, other in zip(ones, others, strict=True):
        if one.dtype.kind != "f":  # presence of a history's positions, ids: nothing rounds them
            if not np.array_equal(one, other):
                return False
            continue
        known = ~(np.isnan(one) & np.isnan(other))
        size = np.abs(one).max(initial=1.0, where=known)
        if not np.abs(one - other).max(initial=0.0, where=known) <= tolerance * size:
            return False
    return True


def _times(calls: Sequence[Callable[[], Any]], seconds: float) -> tuple[float, float]:
    """Return the lower quartiles of two calls in milliseconds, timed in turn for about ``seconds`` seconds.

    Not medians: what other work on the machine adds to a call says nothing about the call.
    """
    for call in calls:
        call()
    samples = samples_in_turn(dict(enumerate(calls)), _LEAST_ROUNDS, _MOST_ROUNDS, seconds)
    first, second = (float(np.percentile(taken, 25)) for taken in samples.values())
    return first, second


def _random_feeds(inputs: tuple[TensorSpec, ...], axis: str, rows: int) -> dict[str, Array]:
    """Return ids of row 0, which every table has, normal numbers, mixed masks; ``rows`` on one axis, 1 on others."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple((rows if d == axis else 1) if isinstance(d, str) else d for d in spec.shape)
        kind = np.dtype(spec.dtype).kind
        drawn = rng.standard_normal(shape) if kind == "f" else np.zeros(shape)
        feeds[spec.name] = (rng.random(shape) < 0.5 if kind == "b" else drawn).astype(spec.dtype)
    return feeds
