"""The cache of user states: one computation per user across threads, and nothing stale."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.serve.state_cache import State, StateCache
from graphs.base.errors import UgsepError

THREADS = 4


def state(value: float) -> State:
    return {"state": np.full((1, 8), value, np.float32)}


class Slow:
    """Computes once released, and counts its calls."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self) -> State:
        self.calls += 1
        self.started.set()
        assert self.go.wait(10)
        return state(7)


def test_threads_that_want_the_same_user_compute_it_once() -> None:
    cache, slow = StateCache(1 << 20), Slow()
    with ThreadPoolExecutor(THREADS) as pool:
        first = pool.submit(cache.get, b"user", slow)
        assert slow.started.wait(10)
        others = [pool.submit(cache.get, b"user", slow) for _ in range(THREADS - 1)]
        while cache.info().hits < THREADS - 1:  # the others now wait for the first
            pass
        # Another user does not wait for it.
        assert cache.get(b"other", lambda: state(1))["state"][0, 0] == 1
        slow.go.set()
        found = [f.result(10) for f in (first, *others)]
    assert slow.calls == 1
    assert all(f is found[0] for f in found)
    assert (cache.info().misses, cache.info().hits, cache.info().users) == (2, THREADS - 1, 2)


def test_what_fails_is_raised_to_everybody_and_tried_again() -> None:
    cache, started, go = StateCache(1 << 20), threading.Event(), threading.Event()

    def fail() -> State:
        started.set()
        assert go.wait(10)
        raise UgsepError("user feature 'age' is missing")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, b"user", fail)
        assert started.wait(10)
        second = pool.submit(cache.get, b"user", lambda: state(3))
        while cache.info().hits < 1:
            pass
        go.set()
        for waiting in (first, second):
            with pytest.raises(UgsepError, match="'age' is missing"):
                waiting.result(10)
    assert cache.get(b"user", lambda: state(3))["state"][0, 0] == 3


def test_a_state_computed_before_a_clear_is_not_kept_after_it() -> None:
    cache, slow = StateCache(1 << 20), Slow()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cache.get, b"user", slow)
        assert slow.started.wait(10)
        cache.clear()
        assert cache.get(b"user", lambda: state(2))["state"][0, 0] == 2
        slow.go.set()
        assert running.result(10)["state"][0, 0] == 7
    assert cache.get(b"user", slow)["state"][0, 0] == 2
    assert slow.calls == 1
