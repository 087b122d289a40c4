"""The campaign: slices of a few seconds, each with its threads, its cache and its disturbance."""

from __future__ import annotations

import gc
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.fuzz.inputs import make_bundle
from benchmarks.reliability.fuzz.programs import PROGRAMS, import_all
from benchmarks.reliability.fuzz.worker import Worker
from benchmarks.reliability.score.calls import Reference, Request, call
from benchmarks.reliability.score.features import random_rows
from engines import Ranker
from engines.backends.contract import Array
from engines.bundle.manifest import read_manifest
from engines.serve.errors import RankerClosed

__all__ = ["CAMPAIGN"]

BUILD_SECONDS = 300.0
REQUESTS, USERS = 60, 40
#: Between calls of the same engines: several users in one call are summed in another order.
SAME_ENGINES = 1e-4
#: Entries of the smallest cache: nearly every lookup evicts, and threads often wait for each other's user.
SMALL_CACHE, LARGE_CACHE = 4_000, 1 << 20
LOADS = 25  # of a bundle, in one try; 20 tries make 500
#: A leak of one engine or state per call would be far more; the allocator's own noise is below.
LEAK_BYTES_PER_LOAD = 200_000
MOST_GROWN = 20_000_000  # bytes in the second half of a slice, when caches are full: the stacks and pools of threads
SECONDS = 2.0


@dataclass(frozen=True)
class Known:
    """A request and the logits that one thread alone got for it."""

    request: Request
    expected: dict[str, Array]


@dataclass(frozen=True)
class Workspace:
    """A bundle, a copy of it that may be overwritten, and requests with their scores."""

    bundle: Path
    spare: Path
    known: tuple[Known, ...]


def prepare(folder: Path) -> Workspace:
    """Build a small bundle and score the requests one by one."""
    import_all()
    with Worker(PROGRAMS, folder / "making", BUILD_SECONDS) as maker:
        _, bundle = make_bundle(folder, maker)
    reference = Reference.of(Path(bundle))
    tables, rng = read_manifest(Path(bundle)).vocabularies, random.Random(0)
    ranker = reference.ranker
    users = random_rows(ranker.user_inputs, tables, USERS, rng)
    known = []
    for _ in range(REQUESTS):
        rows = [rng.randrange(USERS) for _ in range(rng.randint(1, ranker.max_users or 4))]
        candidates = rng.choice((1, 3, 17, 60))
        index = np.array([rng.randrange(len(rows)) for _ in range(candidates)], np.int64)
        items = random_rows(ranker.item_inputs, tables, candidates, rng)
        request = Request({name: value[rows] for name, value in users.items()}, items, index)
        known.append(Known(request, reference.engines(request)))
    ranker.close()
    return Workspace(Path(bundle), folder / "spare", tuple(known))


def attempt(workspace: Workspace, index: int, rng: random.Random) -> Outcome:
    """Make one slice."""
    return _SCENARIOS[index % len(_SCENARIOS)](workspace, rng)


def _steady(threads: int, cache: int) -> Callable[[Workspace, random.Random], Outcome]:
    def scenario(workspace: Workspace, rng: random.Random) -> Outcome:
        """Score for a while; memory at the end as in the middle."""
        with Ranker.from_bundle(workspace.bundle, cache_bytes=cache) as ranker:
            half = _run(ranker, workspace, threads, rng.random(), SECONDS / 2)
            resident = psutil.Process().memory_info().rss
            found = half if half.wrong else _run(ranker, workspace, threads, rng.random(), SECONDS / 2)
            grown = psutil.Process().memory_info().rss - resident
            info = ranker.cache_info()
        target = f"{threads} threads, {'large' if cache == LARGE_CACHE else 'small'} cache"
        if found.wrong:
            return Outcome(target, "defect", "wrong score", found.wrong)
        if info.bytes > cache:
            return Outcome(target, "defect", "the cache is over its limit", f"{info.bytes} of {cache} bytes")
        if grown > MOST_GROWN:
            return Outcome(target, "defect", "memory grows", f"{grown / 1e6:.1f} MB in the second half")
        measures = {
            "requests_per_second": found.count / found.seconds,
            "grown_mb": grown / 1e6,
            "resident_mb": resident / 1e6,
            "hit_share": info.hit_ratio,
        }
        return Outcome(target, "ok", "", "", measures)

    return scenario


def _closed(workspace: Workspace, rng: random.Random) -> Outcome:
    """Close the ranker while threads score: what runs ends well, what comes later is refused."""
    ranker = Ranker.from_bundle(workspace.bundle, cache_bytes=SMALL_CACHE)
    closer = threading.Timer(rng.uniform(0.0, 0.3), ranker.close)
    closer.start()
    found = _run(ranker, workspace, 8, rng.random(), SECONDS, until_closed=True)
    closer.join()
    target = "closed while 8 threads score"
    if found.wrong:
        return Outcome(target, "defect", "wrong score", found.wrong)
    if found.closed != 8:
        return Outcome(target, "defect", "not refused after close", f"{found.closed} of 8 threads were")
    return Outcome(target, "ok", "", "", {"requests_before": float(found.count)})


def _replaced(workspace: Workspace, rng: random.Random) -> Outcome:
    """Overwrite and remove the files of a loaded bundle: its scores stay, as its files are in memory or open."""
    shutil.rmtree(workspace.spare, ignore_errors=True)
    shutil.copytree(workspace.bundle, workspace.spare)
    target = "files replaced while 8 threads score"
    with Ranker.from_bundle(workspace.spare, cache_bytes=SMALL_CACHE) as ranker:
        stop = threading.Event()

        def replace() -> None:
            for file in sorted(workspace.spare.rglob("*")):
                if file.is_file() and not stop.wait(0.02):
                    fresh = file.with_name("fresh")
                    fresh.write_bytes(rng.randbytes(100))
                    fresh.replace(file)  # as a deployment does: a file that is written in place could not be served
            shutil.rmtree(workspace.spare)

        replacer = threading.Thread(target=replace)
        replacer.start()
        found = _run(ranker, workspace, 8, rng.random(), SECONDS)
        stop.set()
        replacer.join()
    if found.wrong:
        return Outcome(target, "defect", "wrong score", found.wrong)
    return Outcome(target, "ok", "", "", {"requests_per_second": found.count / found.seconds})


def _loaded_often(workspace: Workspace, rng: random.Random) -> Outcome:
    """Load, score once and close, many times: memory and descriptors stay."""
    process = psutil.Process()

    def load() -> str:
        with Ranker.from_bundle(workspace.bundle) as ranker:
            return _wrong(rng.choice(workspace.known), ranker, "score_requests")

    wrong = next(filter(None, (load() for _ in range(5))), "")  # the allocator fills its pools
    gc.collect()
    resident, descriptors = process.memory_info().rss, process.num_fds()
    wrong = wrong or next(filter(None, (load() for _ in range(LOADS))), "")
    gc.collect()
    grown = (process.memory_info().rss - resident) / LOADS
    target = f"{LOADS} loads"
    if wrong:
        return Outcome(target, "defect", "wrong score", wrong)
    if process.num_fds() > descriptors:
        return Outcome(target, "defect", "descriptors leak", f"{descriptors} before, {process.num_fds()} after")
    if grown > LEAK_BYTES_PER_LOAD:
        return Outcome(target, "defect", "memory leaks", f"{grown:.0f} bytes a load")
    return Outcome(target, "ok", "", "", {"grown_bytes_per_load": grown})


@dataclass(frozen=True)
class _Found:
    """What the threads of one slice did."""

    count: int
    closed: int
    wrong: str
    seconds: float


def _run(
    ranker: Ranker, workspace: Workspace, threads: int, seed: float, seconds: float, until_closed: bool = False
) -> _Found:
    """Score known requests in threads, until the time is over or the ranker is closed."""
    counts, closed, wrong = [0] * threads, [False] * threads, [""] * threads
    began = time.perf_counter()

    def work(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while time.perf_counter() - began < seconds and not any(wrong):
            how = rng.choice(("score_requests", "score_users", "user_state"))
            try:
                wrong[number] = _wrong(rng.choice(workspace.known), ranker, how)
            except RankerClosed as error:
                closed[number] = True
                wrong[number] = "" if until_closed else f"{type(error).__name__}: {error}"
                return
            except Exception as error:
                wrong[number] = f"{how}: {type(error).__name__}: {error}"
            counts[number] += 1

    started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return _Found(sum(counts), sum(closed), next(filter(None, wrong), ""), time.perf_counter() - began)


def _wrong(known: Known, ranker: Ranker, how: str) -> str:
    """Return how far the scores of one call are off, or ''."""
    if how == "user_state":
        state = ranker.user_state({name: value[:1] for name, value in known.request.users.items()})
        return "" if all(np.isfinite(value).all() for value in state.values()) else "a state is not finite"
    scores: Any = call(ranker, how, known.request)
    for task, expected in known.expected.items():
        error = float(np.abs(scores[task] - expected).max())
        if not error <= SAME_ENGINES * max(1.0, float(np.abs(expected).max())):
            return f"{how}: task '{task}' is off by {error:.3g}"
    return ""


_SCENARIOS: tuple[Callable[[Workspace, random.Random], Outcome], ...] = (
    _steady(1, LARGE_CACHE),
    _steady(8, SMALL_CACHE),
    _closed,
    _steady(32, SMALL_CACHE),
    _replaced,
    _steady(8, LARGE_CACHE),
    _loaded_often,
    _steady(32, LARGE_CACHE),
)

CAMPAIGN = Campaign(
    name="threads",
    goal=(
        "8 and 32 threads over one ranker, under pressure on the cache, while it is closed and while its files are "
        "replaced: every score right, memory and descriptors flat."
    ),
    prepare=prepare,
    attempt=attempt,
    short_tries=len(_SCENARIOS),
    long_tries=900,
)
