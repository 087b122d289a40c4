"""What became of a request, for metrics, logs, records and traces."""

from __future__ import annotations

from typing import NamedTuple

from engines.serve.core.job import Answer, Job, StageSeconds
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull, RankerClosed
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError

__all__ = ["Outcome", "code_of"]


class Outcome(NamedTuple):
    """One request that a worker took and answered or failed.

    ``served`` is the bundle it ran on, or was meant for if it failed; None if none was loaded. ``request`` is None if
    it was not decoded. ``code`` is the HTTP status, for requests over gRPC too. ``started`` is when a worker took it
    and ``ended`` when it was answered, times of ``time.monotonic()``; ``codec`` is the seconds spent on decoding and
    encoding.
    """

    job: Job
    request: ScoreRequest | None
    result: Answer | Exception
    served: ServedBundle | None
    candidates: int
    code: int
    started: float
    codec: float
    ended: float

    @property
    def seconds(self) -> StageSeconds:
        """The seconds of each stage; of a failed request only those in the queue."""
        if isinstance(self.result, Answer):
            return self.result.seconds
        return StageSeconds(max(0.0, self.started - self.job.arrived), 0.0, 0.0)

    @property
    def total(self) -> float:
        """Seconds from the request's arrival to its answer."""
        return max(0.0, self.ended - self.job.arrived)


def code_of(error: BaseException) -> int:
    """Return the HTTP status of an error: what the client got wrong is 400, our own bugs are 500."""
    match error:
        case QueueFull():
            return 429
        case NotReady() | RankerClosed():
            return 503
        case DeadlineExceeded():
            return 504
        case UgsepError():
            return 400
        case _:
            return 500
