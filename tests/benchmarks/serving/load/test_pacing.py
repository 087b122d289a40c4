"""Tests for benchmarks/serving/load/pacing.py."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np

from benchmarks.serving.load.pacing import Pacer


def test_no_request_is_sent_before_it_is_due() -> None:
    offsets = np.cumsum(np.random.default_rng(0).exponential(0.001, 100))

    async def early() -> list[float]:
        started, found = time.perf_counter(), []
        with Pacer() as pacer:
            for offset in offsets:
                await pacer.until(started + offset)
                found.append(started + offset - time.perf_counter())
        return found

    assert max(asyncio.run(early())) <= 0


def test_the_loop_answers_while_a_request_waits_for_its_time() -> None:
    async def order() -> list[str]:
        found: list[str] = []
        with Pacer() as pacer:
            asyncio.get_running_loop().call_later(0.001, found.append, "an answer")
            await pacer.until(time.perf_counter() + 0.2)
            found.append("the next request")
        return found

    assert asyncio.run(order()) == ["an answer", "the next request"]


def test_what_is_due_already_needs_no_thread() -> None:
    async def threads() -> list[str]:
        before = set(threading.enumerate())  # those of other tests may still be ending
        with Pacer() as pacer:
            await pacer.until(time.perf_counter() - 1)
            return [thread.name for thread in set(threading.enumerate()) - before]

    assert asyncio.run(threads()) == []


def test_the_thread_ends_with_the_pacer() -> None:
    async def used() -> threading.Thread:
        before = set(threading.enumerate())
        with Pacer() as pacer:
            await pacer.until(time.perf_counter() + 0.01)
            (thread,) = set(threading.enumerate()) - before
        return thread

    thread = asyncio.run(used())
    thread.join(timeout=10)
    assert not thread.is_alive()
