"""What a protocol hands to the workers, and what it gets back."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from engines.backends.contract import Array
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.score_request import ScoreRequest

__all__ = ["Answer", "Job", "StageSeconds"]


class StageSeconds(NamedTuple):  # a frozen dataclass takes several times as long to make, while a caller waits
    """Where the time of a request went, in seconds; ``user`` is 0 if every state was cached."""

    queue: float
    user: float
    item: float


class Answer(NamedTuple):
    """The scores of a request, or the states of its users, and which bundle made them."""

    served_by: ServedBundle
    outputs: dict[str, Array]
    hits: int
    misses: int
    batch_users: int
    seconds: StageSeconds


class Job(Protocol):
    """One request on its way through the server; the protocol that received it implements this.

    A worker calls ``decode``, then ``answer`` or ``fail``, all in the worker's thread: tensors are neither parsed nor
    written in the threads that accept connections. ``decode`` is called again if the bundle was replaced before the
    request ran, and not at all if it is refused before; ``fail`` follows an ``answer`` that raised.
    """

    @property
    def arrived(self) -> float:
        """When the request was received whole, a time of ``time.monotonic()``."""
        ...

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting, a time of ``time.monotonic()``; None if it never does."""
        ...

    @property
    def routing_key(self) -> str:
        """What the caller routes by, for the miss report; empty if unknown. Never logged, never a label."""
        ...

    @property
    def traceparent(self) -> str:
        """The W3C ``traceparent`` that came with the request, as sent; empty if none did."""
        ...

    @property
    def users_only(self) -> bool:
        """Whether the request is for the user graph: it warms the cache, and ``items`` of its request is empty."""
        ...

    def decode(self, served: ServedBundle) -> ScoreRequest:
        """Parse the request for one bundle.

        Raises:
            UgsepError: the request is malformed; the worker passes it to ``fail``.
        """
        ...

    def answer(self, answer: Answer) -> None:
        """Encode the answer and deliver it; a caller that hung up is not an error."""
        ...

    def fail(self, error: Exception) -> None:
        """Deliver an error: a UgsepError's line, or 'internal error' for anything else."""
        ...
