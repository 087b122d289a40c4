"""Why a call is refused although its content is sound; each is a UgsepError with one line."""

from __future__ import annotations

from graphs.base.errors import UgsepError

__all__ = ["DeadlineExceeded", "NotReady", "QueueFull", "RankerClosed", "UnknownModel"]


class DeadlineExceeded(UgsepError):
    """The deadline of a call passed before its scores were ready."""


class QueueFull(UgsepError):
    """As many requests wait as the queue holds; retrying at once would only add load."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class NotReady(UgsepError):
    """The server is loading or draining; another replica can take the request."""


class RankerClosed(UgsepError):
    """The ranker was closed before the call started."""


class UnknownModel(UgsepError):
    """The server has no model of this name or version."""
