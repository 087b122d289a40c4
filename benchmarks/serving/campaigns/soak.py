"""Half an hour of mixed load: errors, memory and descriptors."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.serving.campaigns.bench import PATIENT, Bench, Result, result
from benchmarks.serving.campaigns.overload import Sampler
from benchmarks.serving.campaigns.phases import rate_of, saturated, together
from benchmarks.serving.load.arrivals import poisson, zipf_picks
from benchmarks.serving.load.grpc_load import grpc_open_loop
from benchmarks.serving.load.http_load import open_loop
from benchmarks.serving.load.pool import make_pool
from benchmarks.serving.load.tally import Tally
from benchmarks.serving.servers.ours import our_server
from benchmarks.serving.servers.process import started
from engines.verify.checks import Check

CANDIDATES, USERS, SHARE = 64, 1000, 0.5
MOST_SLOPE = 1.0  # MB per hour
_WARM_UP = 0.2  # share of the run: the cache fills, the allocator settles


def soak(bench: Bench, minutes: float = 30.0) -> Result:
    """Send Zipf's users at a share of saturation, over HTTP and gRPC.

    Raises:
        UgsepError: the server does not start.
    """
    seconds = bench.long(60 * minutes, 3)
    pool = make_pool([bench.bundle], USERS if not bench.short else 16, CANDIDATES, seed=bench.seed)
    server = our_server(bench.bundle, bench.work, bench.server_cores, (*PATIENT, "--state-cache", "16M"), "soak")
    with started(server):
        assert server.grpc is not None
        bench.pin_generator()
        rate = SHARE * rate_of(saturated(server.http, pool, bench.long(10, 0.5), 8))
        http_times, grpc_times = poisson(0.8 * rate, seconds), poisson(0.2 * rate, seconds, 1)
        began = time.perf_counter()
        with Sampler(server, bench.long(5, 0.1)) as sampled:
            http, grpc = together(
                open_loop(server.http, pool, zipf_picks(pool, len(http_times)), http_times),
                grpc_open_loop(server.grpc, pool, zipf_picks(pool, len(grpc_times), seed=1), grpc_times),
            )
        took = time.perf_counter() - began
    assert isinstance(http, Tally)
    assert isinstance(grpc, Tally)
    at = np.linspace(0, took, len(sampled.samples))
    kept = at >= _WARM_UP * took
    # The median of all slopes between two samples: the allocator gives memory back in steps, and the least squares
    # through a single step early on is a slope of 1 MB per hour where the last 20 minutes are flat within 0.1 MB.
    slope = float(stats.theilslopes(np.asarray(sampled.samples)[kept], at[kept]).slope) * 3600 / 1e6
    settled = [count for count, keep in zip(sampled.descriptors, kept, strict=True) if keep]
    figures: dict[str, Any] = {
        "seconds": round(took, 1),
        "rate": rate,
        "http": http.summary(),
        "grpc": grpc.summary(),
        "slope_mb_per_hour": slope,
        "rss_mb": [round(size / 1e6, 2) for size in sampled.samples],
        "sampled_seconds": [round(float(second), 1) for second in at],
        "descriptors": {"least": min(settled), "most": max(settled)},
    }
    checks = [
        Check("errors", sum(t.planned - t.count(200) for t in (http, grpc)), 0),
        Check("wrong scores", http.wrong + grpc.wrong, 0),
    ]
    if not bench.short:
        checks.append(Check("memory after warm-up, MB per hour", slope, MOST_SLOPE))
        half = len(settled) // 2
        growth = float(np.median(settled[half:]) - np.median(settled[:half]))
        checks.append(Check("descriptors besides connections, second half over first", growth, 0))
    return result(bench, "soak", checks, figures)
