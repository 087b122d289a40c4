"""Count the calls that run, so that what they use is released after the last of them and no sooner."""

from __future__ import annotations

import threading
import time

from engines.serve.errors import RankerClosed

__all__ = ["OpenCalls"]


class OpenCalls:
    """Entered by each call; after ``close`` none can enter."""

    def __init__(self) -> None:
        self._running, self._closed = 0, False
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)

    def __enter__(self) -> None:
        with self._lock:
            if self._closed:
                raise RankerClosed("the ranker is closed; load the bundle again")
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            if self._closed and not self._running:
                self._ended.notify_all()

    def close(self, timeout: float | None = None) -> int:
        """Admit no more calls, wait for those that run, up to ``timeout`` seconds, and return how many still do."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._closed = True
            while self._running:
                rest = None if until is None else until - time.monotonic()
                if rest is not None and rest <= 0:
                    break
                self._ended.wait(rest)
            return self._running
