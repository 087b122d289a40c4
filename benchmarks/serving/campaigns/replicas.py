"""Replicas behind HAProxy: killed under load, restarted one after another, and the users that stay with each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.serving.campaigns.bench import PATIENT, Bench, Result, result
from benchmarks.serving.campaigns.phases import cache_lookups, rate_of, saturated, together
from benchmarks.serving.load.arrivals import poisson, uniform_picks, zipf_picks
from benchmarks.serving.load.grpc_load import grpc_open_loop
from benchmarks.serving.load.http_load import open_loop, run
from benchmarks.serving.load.pool import Pool, make_pool
from benchmarks.serving.load.tally import Tally
from benchmarks.serving.rivals.spec import row_bytes
from benchmarks.serving.servers.ours import our_server, proxy_for
from benchmarks.serving.servers.process import Server, is_ready, started, wait_until
from engines.bundle.manifest import engine_for, read_manifest
from engines.verify.checks import Check

LEAST_REQUESTS = 1000
LEAST_AFFINITY = 0.95
_GRPC_SHARE = 0.25


def kill(bench: Bench) -> Result:
    """Kill replicas with SIGKILL under load, long requests in flight, and start them again.

    Raises:
        UgsepError: a server or HAProxy does not start.
    """
    kills = 1 if bench.short else 6

    def crash(replicas: Sequence[Server], proxy: Server, say: Callable[[str], None]) -> None:
        for number in range(kills):
            time.sleep(bench.long(3, 0.5))
            victim = replicas[number % len(replicas)]
            victim.kill()
            say(f"killed replica {number % len(replicas) + 1}")
            time.sleep(bench.long(2, 0.3))
            victim.start()
            wait_until(lambda: is_ready(proxy.http), 30, "an answer of the proxy")

    return _disturbed(bench, "kill", crash, seconds=bench.long(50, 5))


def rolling(bench: Bench) -> Result:
    """Restart every replica with SIGTERM, one after another, under load.

    Raises:
        UgsepError: a server or HAProxy does not start, or a server does not stop as it should.
    """
    rounds = 1 if bench.short else 3

    def restart(replicas: Sequence[Server], proxy: Server, say: Callable[[str], None]) -> None:
        for _ in range(rounds):
            for number, replica in enumerate(replicas, 1):
                time.sleep(bench.long(2, 0.2))
                status = replica.end(60)
                say(f"replica {number} ended with status {status}")
                replica.start()
                time.sleep(1.5)  # the proxy looks twice a second
            wait_until(lambda: is_ready(proxy.http), 30, "an answer of the proxy")

    return _disturbed(bench, "rolling", restart, seconds=bench.long(60, 12))


def _disturbed(
    bench: Bench,
    name: str,
    disturb: Callable[[Sequence[Server], Server, Callable[[str], None]], None],
    seconds: float,
) -> Result:
    """Send requests through the proxy, over HTTP and gRPC, until the disturbance is over and enough were sent."""
    pool = _mixed_pool(bench)
    drain = (*PATIENT, "--drain-seconds", "2" if bench.short else "5")
    events: list[str] = []
    with _behind_proxy(bench, 2, drain) as (replicas, proxy):
        bench.pin_generator()
        full = rate_of(saturated(replicas[0].http, pool, bench.long(5, 0.5), 4))
        rate = max(0.4 * full, 1.2 * LEAST_REQUESTS / seconds) if not bench.short else min(0.4 * full, 150.0)
        began = time.perf_counter()
        failures: list[BaseException] = []
        over = threading.Event()

        def act() -> None:
            try:
                disturb(replicas, proxy, lambda line: events.append(f"{time.perf_counter() - began:.1f} s: {line}"))
            except BaseException as error:  # raised again by the campaign
                failures.append(error)
            finally:
                time.sleep(bench.long(2, 0.5))
                over.set()

        actor = threading.Thread(target=act)
        actor.start()
        tallies = _until(over, proxy, pool, rate, seconds)
        actor.join()
        if failures:
            raise failures[0]
    http, grpc = tallies
    figures: dict[str, Any] = {"events": events, "rate": rate, "http": http.summary(), "grpc": grpc.summary()}
    checks = [Check("requests", http.planned + grpc.planned, 0 if bench.short else LEAST_REQUESTS, ">=")]
    for kind, tally in (("HTTP", http), ("gRPC", grpc)):
        checks.append(Check(f"wrong scores, {kind}", tally.wrong, 0))
        checks.append(Check(f"requests without scores, {kind}", tally.planned - tally.count(200), 0))
    return result(bench, name, checks, figures)


def _until(over: threading.Event, proxy: Server, pool: Pool, rate: float, seconds: float) -> tuple[Tally, Tally]:
    """Send at a rate until the event, at most for ten times ``seconds``."""
    assert proxy.grpc is not None
    http_times, grpc_times = (
        poisson(rate * (1 - _GRPC_SHARE), 10 * seconds),
        poisson(rate * _GRPC_SHARE, 10 * seconds, 1),
    )
    http, grpc = together(
        open_loop(proxy.http, pool, uniform_picks(pool, len(http_times)), http_times, stop=over.is_set),
        grpc_open_loop(proxy.grpc, pool, uniform_picks(pool, len(grpc_times), 1), grpc_times, stop=over.is_set),
    )
    assert isinstance(http, Tally)
    assert isinstance(grpc, Tally)
    return http, grpc


def _mixed_pool(bench: Bench) -> Pool:
    """Return requests of the usual size, and a few of the largest, which are in flight for long."""
    most = engine_for(read_manifest(bench.bundle), "item").built.max_candidates or 1024
    usual = make_pool([bench.bundle], 32 if not bench.short else 8, min(64, most), seed=bench.seed)
    large = make_pool([bench.bundle], 2, most, seed=bench.seed + 1)
    return Pool(usual.entries + large.entries, max(usual.tolerance, large.tolerance))


@contextmanager
def _behind_proxy(bench: Bench, count: int, options: Sequence[str]) -> Iterator[tuple[list[Server], Server]]:
    with ExitStack() as stack:
        replicas = [
            our_server(bench.bundle, bench.work, bench.server_cores, options, f"replica{number}")
            for number in range(1, count + 1)
        ]
        for replica in replicas:
            stack.enter_context(started(replica))
        proxy = proxy_for(replicas, bench.bundle, bench.work, bench.generator_cores)
        yield replicas, stack.enter_context(started(proxy))


def affinity(bench: Bench) -> Result:
    """Compare the hit ratio of replicas behind the proxy with that of one server whose cache is as large as all.

    Raises:
        UgsepError: a server or HAProxy does not start.
    """
    users = 60 if bench.short else 3000
    pool = make_pool([bench.bundle], users, 4, seed=bench.seed)
    requests = 600 if bench.short else 20_000
    picks = zipf_picks(pool, requests, seed=bench.seed)
    state = _state_bytes(bench)
    total = state * (users // 6)
    found: dict[str, float] = {}
    tallies = {}
    for count in (1, 2) if bench.short else (1, 2, 4):
        options = (*PATIENT, "--state-cache", str(total // count))
        with _behind_proxy(bench, count, options) as (replicas, proxy):
            bench.pin_generator()
            full = rate_of(saturated(replicas[0].http, pool, bench.long(3, 0.3), 4))
            before = [cache_lookups(replica) for replica in replicas]
            arrivals = poisson(min(0.5 * full, 400.0), requests / min(0.5 * full, 400.0), bench.seed)
            number = min(len(arrivals), requests)
            tally: Tally = run(open_loop(proxy.http, pool, picks[:number], arrivals[:number]))
            after = [cache_lookups(replica) for replica in replicas]
        hits = sum(a[0] - b[0] for a, b in zip(after, before, strict=True))
        misses = sum(a[1] - b[1] for a, b in zip(after, before, strict=True))
        found[str(count)] = hits / (hits + misses)
        tallies[str(count)] = tally
    figures: dict[str, Any] = {
        "users": users,
        "cached_users": users // 6,
        "requests": requests,
        "hit_ratio": found,
        "over_one": {count: ratio / found["1"] for count, ratio in found.items()},
        "runs": {count: tally.summary() for count, tally in tallies.items()},
    }
    checks = [Check(f"wrong or lost, {count} replicas", t.wrong + t.lost, 0) for count, t in tallies.items()]
    checks += [
        Check(f"hit ratio of {count} replicas over that of one", ratio, 0.7 if bench.short else LEAST_AFFINITY, ">=")
        for count, ratio in figures["over_one"].items()
    ]
    return result(bench, "affinity", checks, figures)


def _state_bytes(bench: Bench) -> int:
    """Return about what a user takes in the cache: the state and the features that are kept with it."""
    user = engine_for(read_manifest(bench.bundle), "user").built
    return sum(row_bytes(spec) for spec in (*user.outputs, *user.inputs))
