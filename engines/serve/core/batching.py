"""When users share an item call: only where the build measured that it pays."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from engines.bundle.manifest import BatchTiming

__all__ = ["BatchPlan", "Sizes", "plan_from"]

#: A batch has to save this share of the separate calls: below it the gain is within the noise of the measurement, and
#: the first of the batch waits for the last.
LEAST_SAVING = 0.05


@dataclass(frozen=True)
class Sizes:
    """How many users may share an item call: ``least`` to ``most``, or one alone."""

    least: int = 1
    most: int = 1


_ALONE = Sizes()


@dataclass(frozen=True)
class BatchPlan:
    """How many users may share an item call, by the candidates of each: ``sizes[i]`` up to ``candidates[i]``."""

    candidates: tuple[int, ...] = ()
    sizes: tuple[Sizes, ...] = ()

    def sizes_for(self, candidates: int) -> Sizes:
        """Return the sizes of a call in which each user has ``candidates``; one user beyond what was measured."""
        at = bisect_left(self.candidates, candidates)
        return self.sizes[at] if at < len(self.sizes) else _ALONE


def plan_from(timings: Iterable[BatchTiming]) -> BatchPlan:
    """Make the plan from measurements.

    For each number of candidates, ``least`` is the smallest measured number of users that pays: joining two often
    costs what it saves, where joining eight does not. From there on users are added as long as every size pays and
    the time per user still falls. A request between two measured sizes counts as the larger.
    """
    by_candidates: dict[int, list[BatchTiming]] = {}
    for timing in timings:
        by_candidates.setdefault(timing.candidates, []).append(timing)
    measured = sorted(by_candidates)
    return BatchPlan(tuple(measured), tuple(_sizes(by_candidates[candidates]) for candidates in measured))


def _sizes(timings: list[BatchTiming]) -> Sizes:
    found, best = _ALONE, float("inf")
    for timing in sorted(timings, key=lambda t: t.users):
        per_user = timing.batched_ms / timing.users
        pays = timing.batched_ms <= timing.separate_ms * (1 - LEAST_SAVING)
        if pays and per_user < best:
            found, best = Sizes(found.least if found is not _ALONE else timing.users, timing.users), per_user
        elif found is not _ALONE:
            break
    return found
