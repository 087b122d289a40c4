"""The Prometheus metrics of one server, kept in plain counters and turned into text when scraped."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from engines.serve.core.job import Answer
from engines.serve.core.outcome import Outcome
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull, RankerClosed
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError

__all__ = ["Metrics"]

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CANDIDATES = (1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
USERS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
STAGES = ("queue", "user", "item", "codec", "total")
REASONS = ("queue", "deadline", "drain", "input")


class Metrics:
    """What a server counts; thread-safe, and cheap to update: one lock and a few additions per request.

    A registry of its own, so that several servers in a process do not mix. ``watch`` connects what is only read when
    scraped: the queue and the bundles.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._stages = {stage: _Histogram(SECONDS) for stage in STAGES}
        self._candidates, self._users = _Histogram(CANDIDATES), _Histogram(USERS)
        self._refused: Counter[str] = Counter()
        self._counters: Counter[tuple[str, str, str]] = Counter()
        self._help: dict[str, str] = {}
        self._cache_seen: weakref.WeakKeyDictionary[Ranker, Mapping[str, int]] = weakref.WeakKeyDictionary()
        self._cache_totals: Counter[str] = Counter()
        self._depth: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._bundles: Callable[[], list[ServedBundle]] = list
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def watch(self, depth: Callable[[], tuple[int, int]], bundles: Callable[[], list[ServedBundle]]) -> None:
        """Read at each scrape: ``depth`` gives waiting and running requests, ``bundles`` the serving one first."""
        self._depth, self._bundles = depth, bundles

    def observe(self, outcome: Outcome) -> None:
        """Count a request that a worker answered or failed."""
        served, result = outcome.served, outcome.result
        name, version = (served.name, served.version) if served is not None else ("", "")
        stages = self._stages
        with self._lock:
            self._requests[name, version, outcome.code] += 1
            stages["total"].add(outcome.total)
            stages["codec"].add(outcome.codec)
            stages["queue"].add(outcome.seconds.queue)
            if isinstance(result, Answer):
                if result.misses:
                    stages["user"].add(result.seconds.user)
                if not outcome.job.users_only:
                    stages["item"].add(result.seconds.item)
                    self._candidates.add(outcome.candidates)
                    self._users.add(result.batch_users)
            elif (reason := _reason(result)) is not None:
                self._refused[reason] += 1

    def refused(self, error: UgsepError, code: int) -> None:
        """Count a request that was refused before it was queued, or whose envelope was unusable."""
        with self._lock:
            self._requests["", "", code] += 1
            if (reason := _reason(error)) is not None:
                self._refused[reason] += 1

    def count(self, name: str, description: str, label: str = "", value: str = "", by: int = 1) -> None:
        """Add to a counter of another part of the server, ``ugsep_<name>_total``, with at most one label."""
        with self._lock:
            self._help[name] = description
            self._counters[name, label, value] += by

    def count_caches(self) -> None:
        """Add what the caches counted so far; to be called before a bundle leaves, or its last counts are lost."""
        bundles = self._bundles()
        with self._lock:
            self._add_caches(bundles)

    def render(self) -> tuple[bytes, str]:
        """Return the text for ``/metrics`` and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; called by prometheus_client."""
        waiting, running = self._depth()
        bundles = self._bundles()
        with self._lock:
            families = [*self._traffic(), *self._caches(bundles), *self._others()]
        yield from families
        yield GaugeMetricFamily("ugsep_requests_waiting", "Requests in the queue.", waiting)
        yield GaugeMetricFamily("ugsep_requests_running", "Requests in a worker.", running)
        info = GaugeMetricFamily(
            "ugsep_bundle_info", "The bundle that serves.", labels=("model", "digest", "backend", "precision")
        )
        for served in bundles[:1]:
            info.add_metric((served.name, served.version, *_engines(served)), 1)
        yield info

    def _traffic(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "ugsep_requests", "Requests by HTTP status, gRPC's too.", labels=("model", "version", "code")
        )
        for (model, version, code), count in sorted(self._requests.items()):
            requests.add_metric((model, version, str(code)), count)
        yield requests
        seconds = HistogramMetricFamily(
            "ugsep_request_seconds", "Seconds of each stage; user only of requests with a miss.", labels=("stage",)
        )
        for stage, histogram in self._stages.items():
            seconds.add_metric((stage,), *histogram.cumulative())
        yield seconds
        for name, histogram, text in (
            ("ugsep_candidates", self._candidates, "Candidates of a request."),
            ("ugsep_batch_users", self._users, "Users in the item call of a request."),
        ):
            buckets, total = histogram.cumulative()
            yield HistogramMetricFamily(name, text, buckets, total)
        refused = CounterMetricFamily("ugsep_refused", "Requests refused, by reason.", labels=("reason",))
        for reason in REASONS:
            refused.add_metric((reason,), self._refused[reason])
        yield refused

    def _caches(self, bundles: list[ServedBundle]) -> Iterator[Metric]:
        """Yield the counters of the caches; summed over the rankers of a server, so that they never fall."""
        self._add_caches(bundles)
        for name, text in (
            ("hits", "User states found in the cache."),
            ("misses", "User states computed."),
            ("evictions", "User states dropped for want of space."),
        ):
            yield CounterMetricFamily(f"ugsep_user_cache_{name}", text, self._cache_totals[name])
        now = self._cache_seen[bundles[0].ranker] if bundles else {}
        for name, key, text in (
            ("users", "users", "User states held."),
            ("bytes", "bytes", "Bytes of the states held."),
            ("limit_bytes", "limit", "Bytes the cache may hold."),
        ):
            yield GaugeMetricFamily(f"ugsep_user_cache_{name}", text, now.get(key, 0))

    def _add_caches(self, bundles: list[ServedBundle]) -> None:
        """Add what the caches counted since the last time; the lock is the caller's."""
        for served in bundles:
            info = dataclasses.asdict(served.ranker.cache_info())
            seen = self._cache_seen.get(served.ranker, {})
            for name in ("hits", "misses", "evictions"):
                self._cache_totals[name] += max(0, info.get(name, 0) - seen.get(name, 0))
            self._cache_seen[served.ranker] = info

    def _others(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily] = {}
        for (name, label, value), count in sorted(self._counters.items()):
            labels = (label,) if label else ()
            if name not in families:
                families[name] = CounterMetricFamily(f"ugsep_{name}", self._help[name], labels=labels)
            families[name].add_metric((value,) if label else (), count)
        yield from families.values()


class _Histogram:
    """Counts by bucket; the lock is the caller's."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Return pairs of upper bound and count of values up to it, as Prometheus wants them, and the sum."""
        total, buckets = 0, []
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum


def _reason(error: Exception) -> str | None:
    match error:
        case QueueFull():
            return "queue"
        case DeadlineExceeded():
            return "deadline"
        case NotReady() | RankerClosed():
            return "drain"
        case UgsepError():
            return "input"
        case _:
            return None


def _engines(served: ServedBundle) -> tuple[str, str]:
    """Return the backends and precisions of the chosen engines: 'user/item' where they differ."""
    chosen = [e.built for e in served.manifest.engines if e.directory in served.manifest.choice.values()]
    chosen.sort(key=lambda built: built.side, reverse=True)
    return "/".join(dict.fromkeys(b.backend for b in chosen)), "/".join(dict.fromkeys(b.precision for b in chosen))
