"""Requests per second at p99 <= 50 ms: warm and cold cache, against the whole model served the same way."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.serving.campaigns.bench import Bench, Result, result
from benchmarks.serving.campaigns.phases import Contender, cache_lookups, climb, rate_of, saturated
from benchmarks.serving.campaigns.staircase import Staircase
from benchmarks.serving.load.pool import Pool, make_pool
from benchmarks.serving.load.tally import Tally
from benchmarks.serving.servers.ours import our_server, whole_server
from benchmarks.serving.servers.process import started, wait_until
from benchmarks.serving.servers.whole_model import VERSION, fastest_runtime, load_whole, whole_ranker
from engines.bundle.bundle import Bundle
from engines.verify.checks import Check

CANDIDATES, USERS, P99_MS = 64, 512, 50.0
COLD, WARM, WHOLE = "cold cache", "warm cache", "whole model"
LEAST_COLD, LEAST_WARM = 1.8, 2.2
#: Larger differences than rounding: the whole model's runtime may round otherwise at another batch size.
_WHOLE_TOLERANCE = 1e-3


def capacity(bench: Bench) -> Result:
    """Find the highest rate that each server holds; the three staircases are climbed in turn.

    Raises:
        UgsepError: a server does not start, or no runtime of the whole model runs here.
    """
    users = USERS if not bench.short else 8
    pool = make_pool([bench.bundle], users, CANDIDATES, seed=bench.seed)
    runtime, medians = fastest_runtime(bench.bundle, bench.work / "whole", CANDIDATES)
    pools = {WARM: pool, COLD: pool, WHOLE: _whole_pool(bench, pool, runtime)}
    state_cache = {WARM: ("--state-cache", "256M"), COLD: ("--state-cache", "0")}
    with ExitStack() as stack:
        servers = {
            name: our_server(bench.bundle, bench.work, bench.server_cores, options, name.split()[0])
            for name, options in state_cache.items()
        }
        servers[WHOLE] = whole_server(bench.bundle, runtime, bench.work, bench.server_cores)
        for server in servers.values():
            stack.enter_context(started(server))
        wait_until(lambda: "whole model" in servers[WHOLE].log.read_text(), 120, "switching to the whole model")
        bench.pin_generator()
        contenders, first = {}, {}
        for name, server in servers.items():
            saturated(server.http, pools[name], bench.long(4, 0.3))  # warm
            first[name] = saturated(server.http, pools[name], bench.long(8, 0.5))
            contenders[name] = Contender(server.http, pools[name], Staircase(0.7 * rate_of(first[name])))
        climb(contenders.values(), holds, bench.long(10, 0.5), 2 if bench.short else 15)
        lookups = {name: cache_lookups(servers[name]) for name in (WARM, COLD)}
    rates = {name: each.stairs.found() for name, each in contenders.items()}
    figures: dict[str, Any] = {
        "candidates": CANDIDATES,
        "users": users,
        "p99_ms": P99_MS,
        "runtime": runtime,
        "runtimes_p50_ms": {name: round(ms, 4) for name, ms in sorted(medians.items(), key=lambda pair: pair[1])},
        "per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "saturation": {name: round(rate_of(tally), 2) for name, tally in first.items()},
        "steps": {name: each.stairs.steps for name, each in contenders.items()},
        "hit_ratio": {name: hits / max(1.0, hits + misses) for name, (hits, misses) in lookups.items()},
    }
    tallies = {name: [first[name], *each.tallies] for name, each in contenders.items()}
    checks = [
        Check(f"{what}, {name}", sum(getattr(tally, what) for tally in all_of), 0)
        for name, all_of in tallies.items()
        for what in ("wrong", "lost")
    ]
    if not bench.short:
        checks.append(Check("cold cache over the whole model", rates[COLD] / rates[WHOLE], LEAST_COLD, ">="))
        checks.append(Check("warm cache over the whole model", rates[WARM] / rates[WHOLE], LEAST_WARM, ">="))
    return result(bench, "capacity", checks, figures)


def holds(tally: Tally) -> bool:
    """Tell whether a rate was held: every request answered, p99 within the bound."""
    ms = tally.milliseconds()
    return tally.count(200) == tally.planned and len(ms) > 0 and float(np.percentile(ms, 99)) <= P99_MS


def _whole_pool(bench: Bench, pool: Pool, runtime: str) -> Pool:
    """Return the requests with the scores of the whole model in its runtime."""
    ranker = whole_ranker(Bundle.open(bench.bundle).manifest, load_whole(bench.bundle, runtime, bench.work / "whole"))
    entries = tuple(
        dataclasses.replace(entry, expected={VERSION: ranker.score(entry.user, entry.items)})
        for entry in pool.entries
    )
    return Pool(entries, _WHOLE_TOLERANCE, pool.per_user)
