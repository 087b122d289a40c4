"""Percentiles, rates and hit ratio over the last minute, and a point a second for charts."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from engines.serve.core.job import Answer
from engines.serve.core.outcome import Outcome

__all__ = ["LatencyWindow"]

WINDOW, HISTORY = 60, 120  # seconds
STAGES = ("queue", "user", "item", "total")
#: Latencies are counted in buckets 2 % apart, so a percentile is at most 1 % off, and no sample is kept.
STEP = math.log(1.02)
SMALLEST = 1e-6  # seconds


class LatencyWindow:
    """What a server did in the last two minutes; thread-safe, its memory bounded whatever the traffic."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=HISTORY + 1)
        self._requests = 0
        self._lock = threading.Lock()

    def record(self, outcome: Outcome) -> None:
        """Count a request that a worker answered or failed."""
        result = outcome.result
        with self._lock:
            second = self._second(time.time())
            second.codes[outcome.code] += 1
            self._requests += 1
            if isinstance(result, Answer):
                second.hits += result.hits
                second.misses += result.misses
                stages = second.stages
                stages["total"][_bucket(outcome.total)] += 1
                stages["queue"][_bucket(result.seconds.queue)] += 1
                if result.misses:
                    stages["user"][_bucket(result.seconds.user)] += 1
                if not outcome.job.users_only:
                    stages["item"][_bucket(result.seconds.item)] += 1

    def refused(self, code: int) -> None:
        """Count a request that was refused before it was queued."""
        with self._lock:
            self._second(time.time()).codes[code] += 1
            self._requests += 1

    def traffic(self, now: float | None = None) -> dict[str, Any]:
        """Return the ``traffic`` of the status page.

        ``requests`` counts all since the start; the rest covers the last full 60 seconds, or the time since the first
        request. Percentiles are those of answered requests, ``stages.user`` of those with a miss; None without any.
        """
        at = int(time.time() if now is None else now)
        with self._lock:
            last = [s.copy() for s in self._seconds if at - HISTORY <= s.at < at]
            first, requests = (self._seconds[0].at if self._seconds else at), self._requests
        window = [s for s in last if s.at >= at - WINDOW]
        length = max(1, min(WINDOW, at - first))
        codes: Counter[int] = Counter()
        for second in window:
            codes.update(second.codes)
        stages = {name: _percentiles(s.stages[name] for s in window) for name in STAGES}
        by_time = {s.at: s for s in last}
        history = [_point(by_time.get(t) or _Second(t)) for t in range(max(first, at - HISTORY), at)]
        return {
            "requests": requests,
            "window_seconds": length,
            "per_second": round(codes.total() / length, 3),
            **stages["total"],
            "stages": stages,
            "codes": {str(code): count for code, count in sorted(codes.items())},
            "history": history,
        }

    def _second(self, now: float) -> _Second:
        at = int(now)
        if self._seconds and self._seconds[-1].at >= at:  # also if the clock was set back
            return self._seconds[-1]
        self._seconds.append(_Second(at))
        return self._seconds[-1]


class _Second:
    """The requests that ended within one second."""

    __slots__ = ("at", "codes", "hits", "misses", "stages")

    def __init__(self, at: int) -> None:
        self.at = at
        self.codes: Counter[int] = Counter()
        self.stages: dict[str, Counter[int]] = {stage: Counter() for stage in STAGES}
        self.hits = self.misses = 0

    def copy(self) -> _Second:
        made = _Second(self.at)
        made.codes, made.hits, made.misses = Counter(self.codes), self.hits, self.misses
        made.stages = {stage: Counter(counts) for stage, counts in self.stages.items()}
        return made


def _bucket(seconds: float) -> int:
    return int(math.log(seconds / SMALLEST) / STEP) if seconds > SMALLEST else 0


def _percentiles(parts: Iterable[Counter[int]]) -> dict[str, float | None]:
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(part)
    return {f"p{share}_ms": _percentile(counts, share / 100) for share in (50, 99)}


def _percentile(counts: Counter[int], share: float) -> float | None:
    rank = math.ceil(counts.total() * share)
    for bucket in sorted(counts):
        rank -= counts[bucket]
        if rank <= 0:
            return round(SMALLEST * math.exp((bucket + 0.5) * STEP) * 1e3, 4)
    return None


def _point(second: _Second) -> dict[str, Any]:
    looked = second.hits + second.misses
    return {
        "at": second.at,
        "per_second": second.codes.total(),
        **_percentiles([second.stages["total"]]),
        "hit_ratio": round(second.hits / looked, 4) if looked else None,
    }
