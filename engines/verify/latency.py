"""Latency side by side: full FP32 model, user engine, item engine and whole request, interleaved in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from engines.backends.contract import Array, Runner
from engines.measure.percentiles import Percentiles
from engines.serve.ranker import Ranker
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.readers import Request

ROUNDS = 30
WARM_UP = 3


@dataclass(frozen=True)
class RequestLatency:
    """Times of one request size; ``speedup`` is full over request at p50, ``limit`` its FLOP limit."""

    candidates: int
    full_fp32: Percentiles
    user: Percentiles
    item: Percentiles
    request: Percentiles
    speedup: float
    limit: float

    @property
    def fraction_of_limit(self) -> float:
        """Measured speed-up over its limit."""
        return self.speedup / self.limit

    def as_dict(self) -> dict[str, object]:
        """Return the block as ``report.json`` holds it, times in milliseconds."""
        return {**asdict(self), "fraction_of_limit": self.fraction_of_limit}


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Percentiles]:
    """Time every call once per round, in turn, so that drift of the machine hits all of them alike."""
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - started) * 1e3)
    return {name: Percentiles(*map(float, np.percentile(s, (50, 90, 99)))) for name, s in samples.items()}


def measure(
    full: Runner,
    ranker: Ranker,
    request: Request,
    limits: Mapping[int, float],
    progress: ProgressCallback = silent,
) -> list[RequestLatency]:
    """Measure every request size in ``limits`` (candidates -> FLOP limit), on one request's rows repeated to size.

    A request is ``Ranker.score`` with the user-state cache emptied first: user once, then N items. All runners must
    have been loaded with the same thread count.
    """
    results = []
    user, item = ranker.user_runner, ranker.item_runner
    for done, (candidates, limit) in enumerate(limits.items(), start=1):
        items = {k: np.resize(v, (candidates, *v.shape[1:])) for k, v in request.items.items()}
        whole = {**{k: np.repeat(v, candidates, axis=0) for k, v in request.user.items()}, **items}
        state = user.infer(request.user)
        feeds: dict[str, Array] = {**items, **state, **ranker.one_user_index(candidates)}

        def score(items: Mapping[str, Array] = items) -> object:
            ranker.forget_users()
            return ranker.score(request.user, items)

        def run_full(feeds: Mapping[str, Array] = whole) -> object:
            return full.infer(feeds)

        def run_item(feeds: Mapping[str, Array] = feeds) -> object:
            return item.infer(feeds)

        times = interleave(
            {"full": run_full, "user": lambda: user.infer(request.user), "item": run_item, "request": score}
        )
        results.append(
            RequestLatency(
                candidates,
                times["full"],
                times["user"],
                times["item"],
                times["request"],
                times["full"].p50 / times["request"].p50,
                limit,
            )
        )
        progress(Progress("latency", done, len(limits), f"N = {candidates}"))
    return results
