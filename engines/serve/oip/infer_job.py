"""One inference request on its way through the workers, of either protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from engines.serve.core.job import Answer
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.oip.request import Decoded, Reply
from engines.serve.oip.signature import Signature, Signatures
from engines.serve.score_request import ScoreRequest

__all__ = ["Call", "Codec", "InferJob"]

T = TypeVar("T")


class Call(NamedTuple):
    """What is known of a request before it is decoded.

    ``timeout`` is in seconds, 0 for none; it counts from ``arrived``, a time of ``time.monotonic()``.
    """

    arrived: float
    timeout: float = 0.0
    routing_key: str = ""
    traceparent: str = ""


class Codec(NamedTuple, Generic[T]):
    """How one protocol reads its requests and writes its answers; both run in the worker's thread."""

    decode: Callable[[Signature], Decoded]
    encode: Callable[[Answer, Reply], T]


class InferJob(Generic[T]):
    """A job of ``Scheduler``; ``deliver`` gets the encoded answer or the error, once, in the worker's thread."""

    __slots__ = (
        "_abandoned",
        "_call",
        "_codec",
        "_default",
        "_deliver",
        "_reply",
        "_signatures",
        "deadline",
        "users_only",
    )

    def __init__(
        self,
        call: Call,
        codec: Codec[T],
        signatures: Signatures,
        deliver: Callable[[T | Exception], None],
        default_timeout: float = 0.0,
    ) -> None:
        self._call, self._codec, self._signatures, self._deliver = call, codec, signatures, deliver
        self._reply, self._abandoned = Reply(""), False
        self.users_only = False  # until it is decoded, which says for which model it is
        # The default waits for the decoding: it is for requests without a timeout, and the body may hold one.
        self._default = default_timeout
        self.deadline: float | None = call.arrived + call.timeout if call.timeout else None

    @property
    def arrived(self) -> float:
        """When the request was received whole."""
        return self._call.arrived

    @property
    def routing_key(self) -> str:
        """What the caller routes by; empty if unknown."""
        return self._call.routing_key

    @property
    def traceparent(self) -> str:
        """The W3C trace context the caller sent, unchecked; empty if none."""
        return self._call.traceparent

    def abandon(self) -> None:
        """Note that the caller is gone: a worker that has not started yet need not score."""
        self._abandoned, self.deadline = True, time.monotonic()

    def decode(self, served: ServedBundle) -> ScoreRequest:
        """Parse the request for one bundle.

        Raises:
            UgsepError: it is malformed, or for another model or version.
        """
        call = self._call
        decoded = self._codec.decode(self._signatures.of(served))
        self._reply, self.users_only = decoded.reply, decoded.users_only
        given = [seconds for seconds in (call.timeout, decoded.timeout) if seconds]
        timeout = min(given) if given else self._default  # of two that the caller sent, the earlier counts
        if timeout and not self._abandoned:
            self.deadline = call.arrived + timeout
        return decoded.score_request(self.deadline)

    def answer(self, answer: Answer) -> None:
        """Encode the answer and deliver it."""
        self._deliver(self._codec.encode(answer, self._reply))

    def fail(self, error: Exception) -> None:
        """Deliver an error."""
        self._deliver(error)
