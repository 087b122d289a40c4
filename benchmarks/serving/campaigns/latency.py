"""p99 at 70 % of saturation, ours and Triton's on the same engines, beside what an ideal queue would give."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from benchmarks.serving.campaigns.bench import Bench, Result, result
from benchmarks.serving.campaigns.ideal_queue import ideal_queue, replayed, service_times
from benchmarks.serving.campaigns.phases import at_rate, rate_of, saturated, unloaded
from benchmarks.serving.campaigns.turns import Turn, medians, take_turns
from benchmarks.serving.load.http_load import Address
from benchmarks.serving.load.pool import ANY, Entry, Pool, make_pool
from benchmarks.serving.load.tally import Tally, percentiles
from benchmarks.serving.rivals.setup import missing
from benchmarks.serving.servers.ours import our_server
from benchmarks.serving.servers.process import started
from benchmarks.serving.servers.rivals import triton_server
from engines.verify.checks import Check
from graphs.base.errors import UgsepError

CANDIDATES, USERS, SHARE, MOST_RATIO = 64, 256, 0.7, 3.0
#: A shared machine changes its speed within minutes. 70 % of what it did in a fast minute may be all that it does in
#: a slow one, so a turn counts only if the saturation after it is about that before it. A turn takes half a minute
#: and a round two turns: all of this ends within 12 minutes.
TURNS, MOST_TURNS, LEAST_TURNS = 7, 12, 3
MOST_CHANGE = 0.15
OURS, TRITON = "ugsep serve", "triton"


def latency(bench: Bench) -> Result:
    """Load both servers to 70 % of their own saturation, in turn.

    Raises:
        UgsepError: our server does not start; Triton is left out with a reason if it does not.
    """
    own = make_pool([bench.bundle], USERS if not bench.short else 8, CANDIDATES, seed=bench.seed)
    pools = {OURS: own, TRITON: with_any_version(own)}
    left_out = {name: why for name, why in missing(bench.rivals).items() if name == TRITON}
    with ExitStack() as stack:
        ours = our_server(bench.bundle, bench.work, bench.server_cores)
        servers = {OURS: stack.enter_context(started(ours))}
        if not bench.short and not left_out:
            try:
                made = triton_server(bench.bundle, bench.rivals / "triton", bench.work, bench.server_cores)
                servers[TRITON] = stack.enter_context(started(made))
            except UgsepError as error:
                left_out[TRITON] = str(error)
        bench.pin_generator()
        tallies: dict[str, list[Tally]] = {name: [] for name in servers}
        measures = {
            name: partial(_turn, bench, server.http, pools[name], tallies[name]) for name, server in servers.items()
        }
        most_change = math.inf if bench.short else MOST_CHANGE
        wanted, most = (1, 1) if bench.short else (TURNS, MOST_TURNS)
        found = take_turns(measures, wanted, most, most_change)
    steady = {name: [turn for turn in turns if turn.change <= most_change] for name, turns in found.items()}
    figures: dict[str, Any] = {
        "candidates": CANDIDATES,
        "share": SHARE,
        "most_change": MOST_CHANGE,
        "left_out": left_out,
        "steady": {name: [dict(turn.figures) for turn in turns] for name, turns in steady.items()},
        "set_apart": {
            name: [dict(turn.figures) for turn in turns if turn not in steady[name]] for name, turns in found.items()
        },
        "median": {name: medians(turns) for name, turns in steady.items()},
        "requests": {name: sum(t.planned for t in all_of) for name, all_of in tallies.items()},
    }
    return result(bench, "latency", _checks(bench, figures, tallies), figures)


def _turn(bench: Bench, address: Address, pool: Pool, tallies: list[Tally], number: int) -> Turn:
    """Saturate a server, load it to a share of that, and saturate it again."""
    saturated(address, pool, bench.long(1.5, 0.2))  # warm: every user is cached
    alone = unloaded(address, pool, bench.long(3, 0.3))
    before = saturated(address, pool, bench.long(4, 0.3))
    rate = SHARE * rate_of(before)
    loaded = at_rate(address, pool, rate, bench.long(15, 1), seed=number)
    after = saturated(address, pool, bench.long(4, 0.3))
    tallies += [alone, before, loaded, after]
    return Turn(rate_of(before), rate_of(after), _figures(alone, before, loaded, after, rate))


def _figures(alone: Tally, before: Tally, loaded: Tally, after: Tally, rate: float) -> dict[str, float]:
    one, many = percentiles(alone.milliseconds()), percentiles(loaded.milliseconds())
    arrivals, services = np.sort(loaded.due), service_times([before, after])
    queues = {
        "constant": ideal_queue(arrivals, np.atleast_1d(services.mean())),
        "measured": replayed(arrivals, services),
    }
    return {
        "before": rate_of(before),
        "after": rate_of(after),
        "rate": rate,
        "unloaded_p50_ms": one["p50"],
        "unloaded_p99_ms": one["p99"],
        "p50_ms": many["p50"],
        "p99_ms": many["p99"],
        "p99_over_unloaded": many["p99"] / one["p50"],
        **{
            f"{name}_p{q}_ms": float(np.percentile(queue, q)) * 1e3
            for name, queue in queues.items()
            for q in (50, 99)
        },
    }


def _checks(bench: Bench, figures: dict[str, Any], tallies: dict[str, list[Tally]]) -> list[Check]:
    checks = [
        Check(f"{what}, {name}", sum(getattr(tally, what) for tally in all_of), 0)
        for name, all_of in tallies.items()
        for what in ("wrong", "lost")
    ]
    if bench.short:
        return checks
    checks += [Check(f"steady turns, {name}", len(of), LEAST_TURNS, ">=") for name, of in figures["steady"].items()]
    ours = figures["median"][OURS]  # without a steady turn there is no figure, and NaN keeps no bound
    ratio = ours.get("p99_over_unloaded", math.nan)
    checks.append(Check("p99 at 70 % of saturation over the unloaded p50", ratio, MOST_RATIO))
    if TRITON in figures["median"]:
        theirs = figures["median"][TRITON].get("p99_ms", math.nan)
        found = ours.get("p99_ms", math.nan)
        checks.append(Check("p99 at 70 % of saturation, ms, against Triton's", found, theirs))
    return checks


def with_any_version(pool: Pool) -> Pool:
    """Return the pool for servers that number their versions: any version has the same reference."""
    entries = []
    for entry in pool.entries:
        reference = next(iter(entry.expected.values()))
        entries.append(Entry(entry.user, entry.items, entry.key, {"1": reference, ANY: reference}, entry.model))
    return Pool(tuple(entries), pool.tolerance, pool.per_user)
