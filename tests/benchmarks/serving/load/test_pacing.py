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


def test_what_is_due_already_needs_no_thread_and_none_is_left_behind() -> None:
    async def threads() -> int:
        with Pacer() as pacer:
            await pacer.until(time.perf_counter() - 1)
            return sum(thread.name.startswith("pacer") for thread in threading.enumerate())

    assert asyncio.run(threads()) == 0
