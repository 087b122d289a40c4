"""Signals as values that a thread can wait for."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["hang_up_noted", "received_signals"]

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


@contextmanager
def hang_up_noted() -> Iterator[threading.Event]:
    """Yield an event that SIGHUP sets, which by default would end a process that still loads."""
    asked = threading.Event()
    before = signal.signal(signal.SIGHUP, lambda number, frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGHUP, before)
