"""Count the calls that run, so that what they use is released after the last of them and no sooner."""

from __future__ import annotations

import os
import threading
import time

from engines.serve.errors import RankerClosed

__all__ = ["OpenCalls"]


class OpenCalls:
    """Entered by each call; after ``close`` none can enter, and none in a child of ``os.fork`` ever can.

    A fork copies only the thread that calls it: locks that others held and the runtime's own threads would be waited
    for forever.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._running, self._closed = 0, False
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that made the object."""
        return os.getpid() != self._process

    def refuse_forks(self) -> None:
        """Check that this process may use what the calls use.

        Raises:
            RankerClosed: it is a child of the one that made the object.
        """
        if self.forked:
            raise RankerClosed("the ranker was loaded before this process was forked; load the bundle in each worker")

    def __enter__(self) -> None:
        self.refuse_forks()
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
