"""What a server adds to ``Ranker.score``: ours and others in one interleaved run, one request at a time."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serving.campaigns.bench import Bench, Result, result
from benchmarks.serving.load.one_by_one import GrpcClient, HttpClient
from benchmarks.serving.load.pool import ANY, Entry, Pool, bundle_version, make_pool
from benchmarks.serving.load.tally import Tally, percentiles
from benchmarks.serving.load.wire import grpc_outputs, http_outputs
from benchmarks.serving.rivals.setup import missing
from benchmarks.serving.servers.floor import floor_server
from benchmarks.serving.servers.ours import our_server
from benchmarks.serving.servers.process import Server, started
from benchmarks.serving.servers.rivals import kserve_server, triton_server
from engines.serve.ranker import Ranker
from engines.verify.checks import Check
from graphs.base.errors import UgsepError

CANDIDATES, USERS = 256, 8
IN_PROCESS, OURS, FLOOR = "Ranker.score", "ugsep serve", "floor"
MOST_OVERHEAD_MS = 0.5


@dataclass(frozen=True)
class Contender:
    """One way to get scores: what asks for them, what checks the answer, and the cores it runs on in this process."""

    ask: Callable[[Entry], Any]
    check: Callable[[Tally, Entry, Any], None]
    suffix: str = ""
    cores: Collection[int] = ()


def overhead(bench: Bench) -> Result:
    """Time one warm request of 256 candidates through every server and in process, in turn.

    ``floor`` is the least that a Python server can add over the same transport (``servers/floor.py``).

    Raises:
        UgsepError: our server does not start or answer; other servers that do not are left out with a reason.
    """
    candidates = CANDIDATES if not bench.short else 16
    pool = make_pool([bench.bundle], USERS, candidates, seed=bench.seed)
    rounds = 20 if bench.short else 600
    left_out = dict(missing(bench.rivals))
    with ExitStack() as stack:
        contenders = _in_process(bench, stack)
        ours = stack.enter_context(started(our_server(bench.bundle, bench.work, bench.server_cores)))
        contenders |= _clients(ours, OURS, stack)
        floor = floor_server(bench.bundle, candidates, USERS, bench.seed, bench.work, bench.server_cores)
        contenders |= _clients(stack.enter_context(started(floor, ready=None)), FLOOR, stack)
        for name, make in (("triton", triton_server), ("kserve", kserve_server)):
            if bench.short or name in left_out:
                continue
            try:
                server = make(bench.bundle, bench.rivals / name, bench.work, bench.server_cores)
                contenders |= _clients(stack.enter_context(started(server)), name, stack)
                if name == "triton":
                    contenders["triton ensemble, HTTP"] = dataclasses.replace(
                        contenders["triton, HTTP"], suffix="_ensemble"
                    )
            except UgsepError as error:
                left_out[name] = str(error)
        bench.pin_generator()
        samples, tallies = _in_turn(bench, pool, contenders, rounds)
    inside = float(np.median(samples[IN_PROCESS]))
    figures: dict[str, Any] = {
        "candidates": candidates,
        "rounds": rounds,
        "left_out": left_out,
        "contenders": {
            name: {
                "ms": percentiles(np.asarray(ms)),
                "overhead_p50_ms": round(float(np.median(ms)) - inside, 4),
                # Of the differences within a round, whose calls ran under the same conditions.
                "overhead_paired_ms": round(float(np.median(np.subtract(ms, samples[IN_PROCESS]))), 4),
                "wrong": tallies[name].wrong,
                "exact": tallies[name].exact,
            }
            for name, ms in samples.items()
        },
    }
    found = figures["contenders"]
    checks = [Check(f"wrong scores, {name}", tally.wrong, 0) for name, tally in tallies.items()]
    if not bench.short:
        checks += [
            Check(f"overhead over Ranker.score, {kind}, p50 ms", found[f"{OURS}, {kind}"]["overhead_p50_ms"], bound)
            for kind, bound in (("HTTP", MOST_OVERHEAD_MS), ("gRPC", MOST_OVERHEAD_MS))
        ]
    return result(bench, "overhead", checks, figures)


def _in_process(bench: Bench, stack: ExitStack) -> dict[str, Contender]:
    ranker = stack.enter_context(Ranker.from_bundle(bench.bundle, threads=1))
    version = bundle_version(bench.bundle)
    return {
        IN_PROCESS: Contender(
            lambda entry: ranker.score(entry.user, entry.items),
            lambda tally, entry, scores: tally.check(entry, version, scores),
            cores=bench.server_cores,
        )
    }


def _clients(server: Server, name: str, stack: ExitStack) -> dict[str, Contender]:
    """Return a blocking HTTP and a blocking gRPC client of a server."""
    http = stack.enter_context(HttpClient(server.http))
    found = {
        f"{name}, HTTP": Contender(http.infer, lambda tally, entry, got: tally.check(entry, *http_outputs(*got)))
    }
    if server.grpc is not None:
        grpc = stack.enter_context(GrpcClient(server.grpc))
        found[f"{name}, gRPC"] = Contender(
            grpc.infer, lambda tally, entry, message: tally.check(entry, *grpc_outputs(message))
        )
    return found


def _in_turn(
    bench: Bench, pool: Pool, contenders: dict[str, Contender], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Tally]]:
    """Return the milliseconds of every contender in every round, each asked once untimed right before."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    tallies = {name: Tally(pool) for name in contenders}
    order = list(contenders)
    entries = {name: [_renamed(e, c.suffix) for e in pool.entries] for name, c in contenders.items()}
    for turn in range(rounds + 2):
        first = turn % len(order)
        for name in (*order[first:], *order[:first]):
            contender, entry = contenders[name], entries[name][turn % len(pool.entries)]
            if contender.cores:
                os.sched_setaffinity(0, contender.cores)
            contender.ask(entry)
            began = time.perf_counter()
            answer = contender.ask(entry)
            ended = time.perf_counter()
            if contender.cores:
                bench.pin_generator()
            contender.check(tallies[name], entry, answer)
            if turn >= 2:  # the first are warm-up
                samples[name].append((ended - began) * 1e3)
    return samples, tallies


def _renamed(entry: Entry, suffix: str) -> Entry:
    """Return the request for a model of another name whose versions are named differently."""
    reference = next(iter(entry.expected.values()))
    made = Entry(entry.user, entry.items, entry.key, {**entry.expected, ANY: reference}, entry.model + suffix)
    made.http, made.grpc  # noqa: B018  # made now, not while the clock runs
    return made
