"""Signals as values that a thread can wait for."""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["received_signals"]

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def received_signals() -> Iterator[Callable[[], int]]:
    """Collect SIGTERM, SIGINT and SIGHUP, and yield a function that waits for the next; for the main thread."""
    found: queue.SimpleQueue[int] = queue.SimpleQueue()  # its put may interrupt its own put, in a handler
    before = {number: signal.signal(number, lambda got, frame: found.put(got)) for number in HANDLED}

    def wait() -> int:
        while True:
            try:
                # Handlers run in the main thread, when it wakes up: the system may have interrupted another one.
                return found.get(timeout=0.2)
            except queue.Empty:
                continue

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
