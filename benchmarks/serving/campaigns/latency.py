"""p99 at 70 % of saturation, ours and Triton's on the same engines, beside what an ideal queue would give."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.campaigns.bench import Bench, Result, result
from benchmarks.serving.campaigns.phases import at_rate, rate_of, saturated, unloaded
from benchmarks.serving.load.pool import ANY, Entry, Pool, make_pool
from benchmarks.serving.load.tally import Tally, percentiles
from benchmarks.serving.rivals.setup import missing
from benchmarks.serving.servers.ours import our_server
from benchmarks.serving.servers.process import started
from benchmarks.serving.servers.rivals import triton_server
from engines.verify.checks import Check
from graphs.base.errors import UgsepError

CANDIDATES, USERS, SHARE, MOST_RATIO = 64, 256, 0.7, 3.0
#: Short ones, so that the speed of a shared machine is the same when a server is saturated and when it is loaded.
TURNS = 7


def latency(bench: Bench) -> Result:
    """Load both servers to 70 % of their own saturation, in turn.

    Raises:
        UgsepError: our server does not start; Triton is left out with a reason if it does not.
    """
    own = make_pool([bench.bundle], USERS if not bench.short else 8, CANDIDATES, seed=bench.seed)
    pools = {"ugsep serve": own, "triton": with_any_version(own)}
    left_out = {name: why for name, why in missing(bench.rivals).items() if name == "triton"}
    with ExitStack() as stack:
        ours = our_server(bench.bundle, bench.work, bench.server_cores)
        servers = {"ugsep serve": stack.enter_context(started(ours))}
        if not bench.short and not left_out:
            try:
                made = triton_server(bench.bundle, bench.rivals / "triton", bench.work, bench.server_cores)
                servers["triton"] = stack.enter_context(started(made))
            except UgsepError as error:
                left_out["triton"] = str(error)
        bench.pin_generator()
        tallies: dict[str, list[Tally]] = {name: [] for name in servers}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for turn in range(1 if bench.short else TURNS):
            for name, server in servers.items():
                pool = pools[name]
                saturated(server.http, pool, bench.long(2, 0.2))  # warm: every user is cached
                alone = unloaded(server.http, pool, bench.long(3, 0.5))
                full = saturated(server.http, pool, bench.long(5, 0.5))
                rate = SHARE * rate_of(full)
                loaded = at_rate(server.http, pool, rate, bench.long(15, 1), seed=turn)
                tallies[name] += [alone, full, loaded]
                found[name].append(_figures(alone, full, loaded, rate))
    figures: dict[str, Any] = {
        "candidates": CANDIDATES,
        "share": SHARE,
        "left_out": left_out,
        "turns": found,
        "median": {
            name: {key: float(np.median([turn[key] for turn in turns])) for key in turns[0]}
            for name, turns in found.items()
        },
        "requests": {name: sum(t.planned for t in all_of) for name, all_of in tallies.items()},
    }
    return result(bench, "latency", _checks(bench, figures, tallies), figures)


def _checks(bench: Bench, figures: dict[str, Any], tallies: dict[str, list[Tally]]) -> list[Check]:
    checks = [
        Check(f"{what}, {name}", sum(getattr(tally, what) for tally in all_of), 0)
        for name, all_of in tallies.items()
        for what in ("wrong", "lost")
    ]
    if bench.short:
        return checks
    ours = figures["median"]["ugsep serve"]
    ratio = ours["p99_ms"] / ours["unloaded_p50_ms"]
    checks.append(Check("p99 at 70 % of saturation over the unloaded p50", ratio, MOST_RATIO))
    if "triton" in figures["median"]:
        theirs = figures["median"]["triton"]["p99_ms"]
        checks.append(Check("p99 at 70 % of saturation, ms, against Triton's", ours["p99_ms"], theirs))
    return checks


def _figures(alone: Tally, full: Tally, loaded: Tally, rate: float) -> dict[str, float]:
    before, after = percentiles(alone.milliseconds()), percentiles(loaded.milliseconds())
    ideal = ideal_queue(1.0 / rate_of(full), rate)
    return {
        "saturation": rate_of(full),
        "rate": rate,
        "unloaded_p50_ms": before["p50"],
        "unloaded_p99_ms": before["p99"],
        "p50_ms": after["p50"],
        "p99_ms": after["p99"],
        "ideal_p50_ms": float(np.percentile(ideal, 50)),
        "ideal_p99_ms": float(np.percentile(ideal, 99)),
    }


def ideal_queue(service: float, rate: float, requests: int = 200_000, seed: int = 0) -> NDArray[np.float64]:
    """Return the milliseconds of requests in an ideal queue: Poisson arrivals, one server, each takes ``service`` s.

    What no server can beat that answers one request at a time, in their order, at the same saturation.
    """
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, requests)
    # Lindley's recursion in closed form: the wait is how far the work that arrived is above its lowest point so far.
    work = np.cumsum(service - gaps)
    waits = np.concatenate([[0.0], (work - np.minimum.accumulate(np.minimum(work, 0.0)))[:-1]])
    return np.asarray((waits + service) * 1e3)


def with_any_version(pool: Pool) -> Pool:
    """Return the pool for servers that number their versions: any version has the same reference."""
    entries = []
    for entry in pool.entries:
        reference = next(iter(entry.expected.values()))
        entries.append(Entry(entry.user, entry.items, entry.key, {"1": reference, ANY: reference}, entry.model))
    return Pool(tuple(entries), pool.tolerance, pool.per_user)
