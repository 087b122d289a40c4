"""The latency of bundles on the same requests, in turn, with the user computed and with its state cached."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from engines.measure.percentiles import Percentiles
from engines.serve.ranker import Ranker
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

__all__ = ["ReplayLatency", "measure_replay"]


@dataclass(frozen=True)
class ReplayLatency:
    """Milliseconds of whole requests: ``computed`` runs the user graph, ``cached`` finds the user's state."""

    computed: Percentiles
    cached: Percentiles

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON, in milliseconds."""
        return asdict(self)


def measure_replay(
    rankers: Mapping[str, Ranker], requests: Sequence[Request], progress: ProgressCallback = silent
) -> dict[str, ReplayLatency]:
    """Time every ranker on every request, each request on all rankers in turn and in a rotating order.

    Every request is scored once untimed first: a server runs one model and finds its weights in the processor's
    caches, here the other ranker has just evicted them.
    """
    names = list(rankers)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for turn, request in enumerate(requests):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            ranker, (computed, cached) = rankers[name], times[name]
            ranker.score(request.user, request.items)
            ranker.forget_users()
            started = time.perf_counter()
            ranker.score(request.user, request.items)
            between = time.perf_counter()
            ranker.score(request.user, request.items)
            computed.append((between - started) * 1e3)
            cached.append((time.perf_counter() - between) * 1e3)
        progress(Progress("latency", turn + 1, len(requests)))
    return {name: ReplayLatency(Percentiles.of(a), Percentiles.of(b)) for name, (a, b) in times.items()}
