"""When users share an item call: only where the build measured that it pays."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from engines.bundle.manifest import BatchTiming

__all__ = ["BatchPlan", "plan_from"]

#: A batch has to save this share of the separate calls: below it the gain is within the noise of the measurement, and
#: the first of the batch waits for the last.
LEAST_SAVING = 0.05


@dataclass(frozen=True)
class BatchPlan:
    """The most users that may share an item call, by the candidates of each: ``users[i]`` up to ``candidates[i]``."""

    candidates: tuple[int, ...] = ()
    users: tuple[int, ...] = ()

    def most_users(self, candidates: int) -> int:
        """Return the most users of a call in which each has ``candidates``; 1 beyond what was measured."""
        at = bisect_left(self.candidates, candidates)
        return self.users[at] if at < len(self.users) else 1


def plan_from(timings: Iterable[BatchTiming]) -> BatchPlan:
    """Make the plan from measurements.

    For each number of candidates, users are added as long as every smaller batch pays too (fewer may be waiting) and
    the time per user still falls. A request between two measured sizes counts as the larger.
    """
    by_candidates: dict[int, list[BatchTiming]] = {}
    for timing in timings:
        by_candidates.setdefault(timing.candidates, []).append(timing)
    sizes = sorted(by_candidates)
    return BatchPlan(tuple(sizes), tuple(_most_users(by_candidates[size]) for size in sizes))


def _most_users(timings: list[BatchTiming]) -> int:
    most, best = 1, float("inf")
    for timing in sorted(timings, key=lambda t: t.users):
        per_user = timing.batched_ms / timing.users
        if not (timing.batched_ms <= timing.separate_ms * (1 - LEAST_SAVING) and per_user < best):
            break
        most, best = timing.users, per_user
    return most
