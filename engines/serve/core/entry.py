"""A job in the queue or in a worker, with what is known about it so far."""

from __future__ import annotations

import time

from engines.serve.core.job import Job
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded
from engines.serve.score_request import ScoreRequest

__all__ = ["Entry", "check_waiting", "rows_of"]


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


def check_waiting(deadline: float | None) -> None:
    """Refuse to run what waited until its deadline had passed.

    Raises:
        DeadlineExceeded: with how late it is.
    """
    if deadline is not None:
        late = time.monotonic() - deadline
        if late > 0:
            raise DeadlineExceeded(
                f"the deadline passed {late * 1e3:.1f} ms ago, in the queue; the request was not run"
            )
