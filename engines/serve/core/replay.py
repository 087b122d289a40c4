"""Replay a bundle's fixtures: its engines must score them on this machine as they did where it was built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from engines.backends.contract import Array
from engines.bundle.fixture_file import Fixture, Fixtures
from engines.serve.ranker import Ranker
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError

__all__ = ["Difference", "FixtureResult", "replay", "score_alone", "score_request"]


@dataclass(frozen=True)
class Difference:
    """The largest |score - expected| of one task of one request, and its bound."""

    request: str
    task: str
    value: float
    bound: float

    @property
    def ratio(self) -> float:
        """The value over its bound; infinite for NaN, and for any difference if the bound is 0."""
        if not math.isfinite(self.value):
            return math.inf
        if self.value == 0:
            return 0.0
        return self.value / self.bound if self.bound > 0 else math.inf

    def __str__(self) -> str:
        """Return the difference as one line."""
        return f"fixture '{self.request}', task '{self.task}': |difference| {self.value:.3g}, bound {self.bound:.3g}"


@dataclass(frozen=True)
class FixtureResult:
    """The differences of all requests and tasks, in order; ``worst`` is None if nothing was compared."""

    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference | None:
        """The difference that is largest relative to its bound."""
        return max(self.differences, key=lambda d: d.ratio, default=None)

    @property
    def ratio(self) -> float:
        """The largest difference over its bound; infinite if nothing was compared."""
        return self.worst.ratio if self.worst is not None else math.inf

    @property
    def passed(self) -> bool:
        """Whether every difference is within its bound; NaN never is."""
        return self.ratio <= 1.0


def score_request(fixture: Fixture) -> ScoreRequest:
    """Return the request of a fixture."""
    return ScoreRequest(fixture.user, fixture.items, fixture.user_index)


def score_alone(ranker: Ranker, request: ScoreRequest) -> dict[str, Array]:
    """Return the logits of one request, which shares its engine calls with no other.

    Raises:
        UgsepError: as in ``Ranker.score`` and ``Ranker.score_users``.
    """
    if request.user_index is None:
        return ranker.score(request.user, request.items)
    return ranker.score_users(request.user, request.items, request.user_index)


def replay(fixtures: Fixtures, score: Callable[[ScoreRequest], Mapping[str, Array]]) -> FixtureResult:
    """Score every fixture that has expected logits, in order, and compare.

    Raises:
        UgsepError: ``score`` refuses a fixture; the message names it.
    """
    found = []
    for fixture in fixtures.requests:
        if not fixture.expected:
            continue
        try:
            scores = score(score_request(fixture))
        except UgsepError as error:
            raise UgsepError(f"fixture '{fixture.name}': {error}") from error
        for task, expected in fixture.expected.items():
            found.append(
                Difference(fixture.name, task, _largest(scores.get(task), expected), fixtures.tolerances[task])
            )
    return FixtureResult(tuple(found))


def _largest(scores: Array | None, expected: Array) -> float:
    """Return the largest difference; NaN if there is one, or if the scores have another shape."""
    if scores is None or scores.shape != expected.shape:
        return math.nan
    return float(np.abs(scores.astype(np.float64) - expected).max())
