"""Waiting until a request is due, to a tenth of a millisecond, without taking a core.

Polling would be exact, but two virtual cores are often two threads of one physical core: a generator that polls then
takes some of the server's, and what is measured is a server that nobody has. The event loop's own timers have a
resolution of a millisecond. A thread that sleeps costs two wake-ups a request; what it is late counts as latency.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

__all__ = ["Pacer"]


class Pacer:
    """Sleeps in a thread of its own; as a context manager, it ends the thread on exit."""

    def __init__(self) -> None:
        self._sleeper = ThreadPoolExecutor(1, thread_name_prefix="pacer")

    def __enter__(self) -> Pacer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sleeper.shutdown(wait=False, cancel_futures=True)

    async def until(self, due: float) -> None:
        """Return at ``due``, in seconds of ``time.perf_counter``; at once if it is past."""
        left = due - time.perf_counter()
        if left > 0:
            await asyncio.get_running_loop().run_in_executor(self._sleeper, time.sleep, left)
