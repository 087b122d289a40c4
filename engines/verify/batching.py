"""What it gains to score requests of several users in one item call, measured for the rule of the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from engines.bundle.manifest import BatchTiming
from engines.measure.interleave import samples_in_turn
from engines.serve.ranker import Ranker
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

__all__ = ["Batching", "measure_batching"]

USERS, CANDIDATES = (2, 4, 8, 16), (1, 4, 16, 64)
ESTIMATE_ROUNDS, LEAST_ROUNDS, MOST_ROUNDS = 2, 20, 200
ROUND_SECONDS = 0.2
#: Load of other processes only adds time, and more often to the longer of two calls: on two busy cores the median of
#: four calls of 0.15 ms was 6 ms.
PERCENTILE = 25
BUDGET_SECONDS = 10.0


@dataclass(frozen=True)
class Batching:
    """The timings by users, then candidates, and a note on what was left out."""

    timings: tuple[BatchTiming, ...]
    notes: tuple[str, ...] = ()


def measure_batching(
    ranker: Ranker,
    requests: Sequence[Request],
    progress: ProgressCallback = silent,
    budget_seconds: float = BUDGET_SECONDS,
) -> Batching:
    """Time requests of different users in one ``Ranker.score_requests`` call against a ``Ranker.score`` call each.

    The user states are cached in both, as for most requests of a server; both take turns, so that other load affects
    them equally. Few users come first: they wait together more often than many do. A size whose
    rounds would take more than what is left of ``budget_seconds`` is skipped.

    Args:
        ranker: an unused one whose cache holds the states of 16 users.
        requests: where users and candidates come from; the rows of a request are repeated to size.
        progress: called for every size.
        budget_seconds: about how long this may take.

    Raises:
        UgsepError: the ranker refuses a request.
    """
    if not ranker.takes_index:
        return Batching((), ("batching not measured: the item engine serves one user per call",))
    distinct = _of_distinct_users(requests, max(USERS))
    most_users = min(len(distinct), ranker.max_users or len(distinct))
    sizes = [
        (users, candidates)
        for users, candidates in product(USERS, CANDIDATES)
        if users <= most_users and (not ranker.max_candidates or users * candidates <= ranker.max_candidates)
    ]
    found, skipped = [], []
    until = time.perf_counter() + budget_seconds
    for done, (users, candidates) in enumerate(sizes, start=1):
        timing = _measure(ranker, [_resized(r, candidates) for r in distinct[:users]], until - time.perf_counter())
        if timing is None:
            skipped.append(f"{users} x {candidates}")
        else:
            found.append(timing)
        progress(Progress("batching", done, len(sizes), f"{users} users x {candidates} candidates"))
    notes = [f"batching not measured at {', '.join(skipped)} (users x candidates): too slow"] if skipped else []
    if len(distinct) < max(USERS):
        notes.append(f"batching measured up to {len(distinct)} users: the requests have no more")
    return Batching(tuple(found), tuple(notes))


def _measure(ranker: Ranker, requests: Sequence[ScoreRequest], seconds_left: float) -> BatchTiming | None:
    """Return the timing of requests of one size, or None if the rounds would take longer than ``seconds_left``."""

    def separate() -> object:
        return [ranker.score(r.user, r.items) for r in requests]

    def batched() -> object:
        for result in ranker.score_requests(requests):
            if isinstance(result, UgsepError):
                raise result
        return None

    calls: dict[str, Callable[[], object]] = {"separate": separate, "batched": batched}
    for call in calls.values():  # caches the states, and loads the engine's variants
        call()
    first = samples_in_turn(calls, ESTIMATE_ROUNDS)
    if sum(min(times) for times in first.values()) * 1e-3 * LEAST_ROUNDS > seconds_left:
        return None
    samples = samples_in_turn(calls, LEAST_ROUNDS, MOST_ROUNDS, ROUND_SECONDS)
    candidates = len(next(iter(requests[0].items.values())))
    times = (float(np.percentile(samples[name], PERCENTILE)) for name in calls)
    return BatchTiming(len(requests), candidates, *times)


def _of_distinct_users(requests: Sequence[Request], most: int) -> list[Request]:
    """Return the first requests of ``most`` different users; a user is computed once, however many share it."""
    found: dict[tuple[bytes, ...], Request] = {}
    for request in requests:
        if len(found) == most:
            break
        found.setdefault(tuple(value.tobytes() for value in request.user.values()), request)
    return list(found.values())


def _resized(request: Request, candidates: int) -> ScoreRequest:
    items = {name: np.resize(value, (candidates, *value.shape[1:])) for name, value in request.items.items()}
    return ScoreRequest(request.user, items)
