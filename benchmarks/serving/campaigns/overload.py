"""Twice the capacity for a minute: what is still answered, how fast the rest is refused, and the memory."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np

from benchmarks.serving.campaigns.bench import Bench, Result, result
from benchmarks.serving.campaigns.phases import at_rate, rate_of, saturated
from benchmarks.serving.load.pool import make_pool
from benchmarks.serving.load.tally import percentiles
from benchmarks.serving.servers.ours import our_server
from benchmarks.serving.servers.process import Server, started
from engines.verify.checks import Check

CANDIDATES, USERS = 64, 256
LEAST_GOODPUT, REFUSAL_MS, MOST_GROWTH = 0.95, 5.0, 1.05


def overload(bench: Bench) -> Result:
    """Measure the capacity, then send twice as much.

    Raises:
        UgsepError: the server does not start.
    """
    pool = make_pool([bench.bundle], USERS if not bench.short else 8, CANDIDATES, seed=bench.seed)
    server = our_server(bench.bundle, bench.work, bench.server_cores, ("--queue", "32") if bench.short else ())
    with started(server):
        bench.pin_generator()
        saturated(server.http, pool, bench.long(5, 0.3))
        before = saturated(server.http, pool, bench.long(15, 0.7), 16)
        overloaded = partial(at_rate, server.http, pool, 2 * rate_of(before), connections=512)
        # As many connections as the overload opens: their buffers are no leak.
        warm = overloaded(bench.long(10, 0.7))
        with Sampler(server, bench.long(0.5, 0.1)) as memory:
            during = overloaded(bench.long(60, 2), seed=1)
        after = saturated(server.http, pool, bench.long(15, 0.7), 16)
    capacity = (rate_of(before) + rate_of(after)) / 2
    refused = during.milliseconds(429, from_sent=True)
    figures: dict[str, Any] = {
        "capacity": capacity,
        "before": rate_of(before),
        "after": rate_of(after),
        "sent_per_second": during.planned / during.seconds,
        "goodput": rate_of(during),
        "run": during.summary(),
        "refused_from_due_ms": percentiles(during.milliseconds(429)),
        "refused_without_retry_after": during.no_retry_after,
        "rss_bytes": {"start": memory.samples[0], "end": memory.samples[-1], "largest": max(memory.samples)},
    }
    runs = (before, warm, during, after)
    checks = [
        Check("wrong scores", sum(tally.wrong for tally in runs), 0),
        Check("lost requests", sum(tally.lost for tally in runs), 0),
        Check("answers that are neither scores nor refusals", during.planned - during.count(200, 429), 0),
        Check("refusals without Retry-After", during.no_retry_after, 0),
        Check("refusals", len(refused), 1, ">="),
    ]
    if not bench.short:
        p99 = float(np.percentile(refused, 99)) if len(refused) else float("nan")
        checks += [
            Check("goodput over capacity", rate_of(during) / capacity, LEAST_GOODPUT, ">="),
            Check("p99 of a refusal, ms", p99, REFUSAL_MS),
            Check("memory, largest over start", max(memory.samples) / memory.samples[0], MOST_GROWTH),
        ]
    return result(bench, "overload", checks, figures)


class Sampler:
    """Samples a server's memory and descriptors in a thread, from start to end; a context manager."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server, self.seconds = server, seconds
        self.samples: list[int] = []
        self.descriptors: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Sampler:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._take()

    def _take(self) -> None:
        self.samples.append(self.server.resident())
        self.descriptors.append(self.server.descriptors())

    def _sample(self) -> None:
        while not self._ended.wait(self.seconds):
            self._take()
