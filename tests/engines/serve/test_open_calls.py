"""A ranker that closes while calls run: they finish, later ones are refused, and the engines go last."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engines import Ranker
from engines.backends.contract import Array
from engines.serve.errors import RankerClosed
from engines.serve.open_calls import OpenCalls
from engines.serve.score_request import Scored, ScoreRequest
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve import exact_engines as exact

THREADS = 8


class Held:
    """Holds an engine's call until it is released."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, feeds: Mapping[str, Array]) -> None:
        self.started.set()
        assert self.go.wait(10)


def score_until_closed(ranker: Ranker, seed: int, started: threading.Barrier) -> int:
    """Return how many calls were answered, all of them right, before one was refused."""
    user, items = tiny.user_and_items(9, seed=seed)
    other, _ = tiny.user_and_items(1, seed=seed + 100)
    want = ranker.score(user, items)["like"]
    answered = 0
    started.wait(20)
    while True:
        try:
            if seed % 2:
                first, second = ranker.score_requests([ScoreRequest(user, items), ScoreRequest(other, items)])
                assert isinstance(first, Scored)
                assert isinstance(second, Scored)
                np.testing.assert_allclose(first.scores["like"], want, rtol=0, atol=1e-5)
            else:
                np.testing.assert_array_equal(ranker.score(user, items)["like"], want)
            answered += 1
        except RankerClosed:
            return answered


def test_threads_score_while_the_ranker_closes(built_bundle: Path) -> None:
    answered = 0
    for attempt in range(5):
        ranker = Ranker.from_bundle(built_bundle)
        started = threading.Barrier(THREADS + 1)
        with ThreadPoolExecutor(THREADS) as pool:
            running = [pool.submit(score_until_closed, ranker, seed, started) for seed in range(THREADS)]
            started.wait(20)
            time.sleep(0.002 * attempt)
            ranker.close()
            answered += sum(f.result(20) for f in running)
    assert answered > 0


def score_until_refused(ranker: Ranker, number: int) -> None:
    while True:
        try:
            ranker.score(exact.users(number), exact.items(3))
        except RankerClosed as closed:
            if str(closed) != "the ranker is closed; load the bundle again":
                raise
            return


def test_no_engine_is_closed_while_it_runs_nor_runs_when_it_is_closed() -> None:
    for _ in range(20):
        ranker, user_engine, item_engine = exact.exact_ranker(cache_bytes=0)  # every call runs both engines
        started = threading.Barrier(THREADS + 2)

        def work(number: int, ranker: Ranker = ranker, started: threading.Barrier = started) -> None:
            started.wait(10)
            score_until_refused(ranker, number)

        def close(ranker: Ranker = ranker, started: threading.Barrier = started) -> None:
            started.wait(10)
            ranker.close()

        with ThreadPoolExecutor(THREADS + 2) as pool:
            running = [pool.submit(work, n) for n in range(THREADS)] + [pool.submit(close) for _ in range(2)]
            for future in running:
                future.result(10)
        assert (user_engine.closed, item_engine.closed) == (1, 1)


def test_close_waits_for_a_running_call_and_refuses_new_ones_at_once() -> None:
    ranker, user_engine, item_engine = exact.exact_ranker()
    item_engine.before = held = Held()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(ranker.score, exact.users(1), exact.items(3))
        assert held.started.wait(10)
        with pytest.raises(UgsepError, match=r"calls still running after 0\.05 s: 1; close again to"):
            ranker.close(timeout=0.05)
        calls = (
            lambda: ranker.score(exact.users(1), exact.items(3)),
            lambda: ranker.score_users(exact.users(1), exact.items(3), np.zeros(3, np.int64)),
            lambda: ranker.score_requests([]),
            lambda: ranker.user_state(exact.users(1)),
            lambda: ranker.warm(exact.users(1)),
        )
        for call in calls:
            with pytest.raises(RankerClosed):
                call()
        assert (user_engine.closed, item_engine.closed) == (0, 0)
        closing = pool.submit(ranker.close)
        held.go.set()
        np.testing.assert_array_equal(running.result(10)["click"], exact.expected(exact.users(1), exact.items(3)))
        closing.result(10)
    assert (user_engine.closed, item_engine.closed) == (1, 1)
    ranker.close()
    with ranker:
        assert ranker.cache_info().users == 1
    assert (user_engine.closed, item_engine.closed) == (1, 1)


def test_a_call_that_fails_has_ended() -> None:
    calls = OpenCalls()
    with pytest.raises(ZeroDivisionError), calls:
        raise ZeroDivisionError
    assert calls.close(timeout=0) == 0
