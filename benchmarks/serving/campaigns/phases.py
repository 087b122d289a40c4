"""The phases that several campaigns share: saturation, unloaded latency, a rate, the capacity."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.serving.campaigns.staircase import Staircase
from benchmarks.serving.load.arrivals import poisson, uniform_picks
from benchmarks.serving.load.http_load import Address, closed_loop, open_loop, run
from benchmarks.serving.load.pool import Pool
from benchmarks.serving.load.tally import Tally
from benchmarks.serving.servers.process import Server, get

_PICKS = 4096


def saturated(address: Address, pool: Pool, seconds: float, connections: int = 8, seed: int = 0) -> Tally:
    """Keep several requests under way: the rate at which a server answers when it never waits."""
    found: Tally = run(
        closed_loop(address, pool, uniform_picks(pool, _PICKS, seed), seconds, connections=connections)
    )
    return found


def unloaded(address: Address, pool: Pool, seconds: float, seed: int = 0) -> Tally:
    """Send one request at a time."""
    return saturated(address, pool, seconds, 1, seed)


def at_rate(
    address: Address,
    pool: Pool,
    rate: float,
    seconds: float,
    *,
    connections: int = 256,
    seed: int = 0,
) -> Tally:
    """Send requests as they come at a rate per second, as a Poisson process."""
    arrivals = poisson(rate, seconds, seed)
    picks = uniform_picks(pool, len(arrivals), seed)
    found: Tally = run(open_loop(address, pool, picks, arrivals, connections=connections))
    return found


def rate_of(tally: Tally) -> float:
    """Return the answers of status 200 per second."""
    return tally.count(200) / tally.seconds if tally.seconds else 0.0


@dataclass(frozen=True)
class Contender:
    """A server in a search for capacities: what it is sent, the rates tried, and what became of the requests."""

    address: Address
    pool: Pool
    stairs: Staircase
    tallies: list[Tally] = field(default_factory=list)


def climb(contenders: Iterable[Contender], holds: Callable[[Tally], bool], seconds: float, steps: int) -> None:
    """Try a rate on each server in turn, so that drift of the machine affects all alike."""
    for number in range(steps):
        for each in contenders:
            tally = at_rate(each.address, each.pool, each.stairs.rate, seconds, seed=number)
            ms = tally.milliseconds()
            each.stairs.advance(float(np.percentile(ms, 99)) if len(ms) else -1.0, holds(tally))
            each.tallies.append(tally)


def together(*coroutines: object) -> list[object]:
    """Run coroutines at the same time on one loop."""

    async def main() -> list[object]:
        return list(await asyncio.gather(*coroutines))  # type: ignore[call-overload]

    found: list[object] = run(main())
    return found


def cache_lookups(server: Server) -> tuple[float, float]:
    """Return the hits and misses of user states that a server of ours counted."""
    text = get(server.http, "/metrics")[1].decode()
    counts = []
    for what in ("hits", "misses"):
        values = re.findall(rf"^ugsep_user_cache_{what}_total\S* (\S+)$", text, re.MULTILINE)
        counts.append(sum(map(float, values)))
    return counts[0], counts[1]
