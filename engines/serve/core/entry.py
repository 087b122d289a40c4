"""A job in the queue or in a worker, with what is known about it so far."""

from __future__ import annotations

from engines.serve.core.job import Job
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.score_request import ScoreRequest

__all__ = ["Entry", "rows_of"]


class Entry:
    """A job with its request once it is decoded, for ``served``; ``taken`` is when a worker first took it.

    ``codec`` is the seconds spent on decoding, ``finished`` whether it was answered or failed.
    """

    __slots__ = ("candidates", "codec", "finished", "job", "request", "served", "taken", "users")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.request: ScoreRequest | None = None
        self.served: ServedBundle | None = None
        self.candidates, self.users = 0, 1
        self.taken, self.codec = 0.0, 0.0
        self.finished = False


def rows_of(features: object) -> int:
    """Return the rows of the first feature; the ranker checks that all agree."""
    if isinstance(features, dict):
        for value in features.values():
            return int(value.shape[0]) if value.ndim else 0
    return 0
