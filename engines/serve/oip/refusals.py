"""How errors leave the server: one printable line, and a code of each protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull, RankerClosed, UnknownModel
from graphs.base.errors import UgsepError

__all__ = ["BodyTooLarge", "BodyTooSlow", "Refusal", "refusal"]

_MOST_CHARACTERS = 500


class BodyTooLarge(UgsepError):
    """A request is larger than the server reads."""


class BodyTooSlow(UgsepError):
    """A request's body did not arrive in time."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer without scores; ``grpc`` is the name of a ``grpc.StatusCode``, ``retry_after`` whole seconds or 0."""

    http: int
    grpc: str
    line: str
    retry_after: int = 0


def refusal(error: Exception) -> Refusal:
    """Return how an error is answered; anything but a UgsepError is 'internal error', so that no detail leaks."""
    if not isinstance(error, UgsepError):
        return Refusal(500, "INTERNAL", "internal error")
    line = str(error)  # printable, as every UgsepError's
    line = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
    if isinstance(error, QueueFull):
        return Refusal(429, "RESOURCE_EXHAUSTED", line, max(1, math.ceil(error.retry_after)))
    if isinstance(error, (NotReady, RankerClosed)):
        return Refusal(503, "UNAVAILABLE", line)
    if isinstance(error, DeadlineExceeded):
        return Refusal(504, "DEADLINE_EXCEEDED", line)
    if isinstance(error, UnknownModel):
        return Refusal(400, "NOT_FOUND", line)
    if isinstance(error, BodyTooLarge):
        return Refusal(413, "RESOURCE_EXHAUSTED", line)
    if isinstance(error, BodyTooSlow):
        return Refusal(408, "DEADLINE_EXCEEDED", line)
    return Refusal(400, "INVALID_ARGUMENT", line)
