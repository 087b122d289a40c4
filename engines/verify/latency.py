"""Latency side by side: full FP32 model, user engine, item engine and whole request, interleaved in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from engines.backends.contract import Array, Runner
from engines.measure.interleave import interleaved
from engines.measure.percentiles import Percentiles
from engines.serve.ranker import Ranker
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

ROUNDS = 30


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


def measure_latency(
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

        times = interleaved(
            {"full": run_full, "user": lambda: user.infer(request.user), "item": run_item, "request": score}, ROUNDS
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
