"""Many small requests: sharing item calls against one call each, through the server and in process."""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.campaigns.bench import Bench, Result, result
from benchmarks.serving.campaigns.phases import rate_of, saturated
from benchmarks.serving.load.pool import Pool, make_pool
from benchmarks.serving.servers.ours import our_server
from benchmarks.serving.servers.process import Server, get, started
from engines.bundle.digest import seal
from engines.bundle.files import MANIFEST
from engines.bundle.manifest import read_manifest
from engines.serve.ranker import Ranker
from engines.serve.score_request import ScoreRequest
from engines.verify.checks import Check
from graphs.base.errors import UgsepError

USERS, CANDIDATES, LEAST = 16, 4, 2.0
BATCHED, SEPARATE = "batched", "separate"


def batching(bench: Bench) -> Result:
    """Saturate two servers that differ in nothing but the bundle's measurements of batching.

    Raises:
        UgsepError: a server does not start, or the bundle has no measurements of batching.
    """
    if not read_manifest(bench.bundle).batching:
        raise UgsepError(f"{bench.bundle}: its build did not measure batching; build the bundle again")
    plain = without_batching(bench.bundle, bench.work / "without-batching")
    pool = make_pool([bench.bundle, plain], USERS, CANDIDATES, seed=bench.seed)
    with ExitStack() as stack:
        servers = {
            BATCHED: our_server(bench.bundle, bench.work, bench.server_cores, (), BATCHED),
            SEPARATE: our_server(plain, bench.work, bench.server_cores, (), SEPARATE),
        }
        for server in servers.values():
            stack.enter_context(started(server))
        bench.pin_generator()
        tallies: dict[str, list[Any]] = {name: [] for name in servers}
        for turn in range(1 if bench.short else 5):
            for name, server in servers.items():
                saturated(server.http, pool, bench.long(1, 0.2), USERS)
                tallies[name].append(saturated(server.http, pool, bench.long(6, 0.5), 2 * USERS, turn))
        shared = {name: users_per_call(server) for name, server in servers.items()}
    rates = {name: float(np.median([rate_of(tally) for tally in found])) for name, found in tallies.items()}
    inside = in_process(bench.bundle, pool, 10 if bench.short else 200)
    figures: dict[str, Any] = {
        "users": USERS,
        "candidates": CANDIDATES,
        "per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": rates[BATCHED] / rates[SEPARATE],
        "users_per_call": shared,
        "in_process_ms": inside,
        "in_process_ratio": inside[SEPARATE] / inside[BATCHED],
        "latency_ms": {name: found[-1].summary()["ms"] for name, found in tallies.items()},
    }
    checks = [
        Check(f"{what}, {name}", sum(getattr(tally, what) for tally in found), 0)
        for name, found in tallies.items()
        for what in ("wrong", "lost")
    ]
    if not bench.short:
        checks.append(Check("batched over separate, in process", figures["in_process_ratio"], LEAST, ">="))
        checks.append(Check("batched over separate, through the server", figures["ratio"], LEAST, ">="))
    return result(bench, "batching", checks, figures)


def users_per_call(server: Server) -> float:
    """Return the mean of ``ugsep_batch_users``: how many users shared the item call of a request.

    Raises:
        UgsepError: the server has not answered a request.
    """
    text = get(server.http, "/metrics")[1].decode()
    total, count = (
        sum(map(float, re.findall(rf"^ugsep_batch_users_{what} (\S+)$", text, re.MULTILINE)))
        for what in ("sum", "count")
    )
    if not count:
        raise UgsepError("the server has answered no request, so that nobody shared a call; see its log")
    return round(total / count, 2)


def without_batching(bundle: Path, folder: Path) -> Path:
    """Copy a bundle without its measurements of batching, so that a server makes one call per request."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["batching"] = []
    (folder / MANIFEST).write_text(seal(json.dumps(manifest, indent=1, sort_keys=True) + "\n"))
    return folder


def in_process(bundle: Path, pool: Pool, rounds: int) -> dict[str, float]:
    """Return the p50 milliseconds of all users' requests in one call of ``score_requests``, and in one call each."""
    requests = [ScoreRequest(entry.user, entry.items) for entry in pool.entries[:USERS]]
    samples: dict[str, list[float]] = {BATCHED: [], SEPARATE: []}
    with Ranker.from_bundle(bundle, threads=1) as ranker:

        def separate() -> None:
            for request in requests:
                ranker.score(request.user, request.items)

        calls = {BATCHED: lambda: ranker.score_requests(requests), SEPARATE: separate}
        for turn in range(rounds + 2):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if turn >= 2:
                    samples[name].append((time.perf_counter() - began) * 1e3)
    return {name: round(float(np.median(ms)), 4) for name, ms in samples.items()}
