"""The cache of user states: one computation per user across threads, deadlines, and nothing stale."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.backends.contract import Array
from engines.serve.errors import DeadlineExceeded
from engines.serve.state_cache import State, StateCache, User, await_state
from graphs.base.errors import UgsepError

THREADS = 4
STATE_BYTES = 32
USER_BYTES = 8


def state(value: float) -> State:
    return {"state": np.full((1, 8), value, np.float32)}


def user(number: int = 0) -> User:
    return {"id": np.array([number])}


def value(found: State) -> float:
    return float(np.asarray(found["state"])[0, 0])


class Slow:
    """Computes once released, and counts its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.calls, self.error = 0, error

    def __call__(self) -> State:
        self.calls += 1
        self.started.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return state(7)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as made:
        yield made


def test_threads_that_want_the_same_user_compute_it_once(pool: ThreadPoolExecutor) -> None:
    cache, slow = StateCache(1 << 20), Slow()
    first = pool.submit(cache.get, b"user", user(), slow)
    assert slow.started.wait(10)
    others = [pool.submit(cache.get, b"user", user(), slow) for _ in range(THREADS - 1)]
    until(lambda: cache.info().hits == THREADS - 1)  # the others now wait for the first
    # Another user does not wait for it.
    assert value(cache.get(b"other", user(), lambda: state(1))[0]) == 1
    slow.go.set()
    found = [f.result(10) for f in (first, *others)]
    assert slow.calls == 1
    assert all(f[0] is found[0][0] for f in found)
    assert [hit for _, hit in found] == [False] + [True] * (THREADS - 1)
    assert (cache.info().misses, cache.info().hits, cache.info().users) == (2, THREADS - 1, 2)


def test_who_waits_for_a_thread_that_fails_computes_the_state_itself(pool: ThreadPoolExecutor) -> None:
    cache, fails = StateCache(1 << 20), Slow(UgsepError("user feature 'age' is missing"))
    first = pool.submit(cache.get, b"user", user(), fails)
    assert fails.started.wait(10)
    second = pool.submit(cache.get, b"user", user(), lambda: state(3))
    until(lambda: cache.info().hits == 1)
    fails.go.set()
    with pytest.raises(UgsepError, match="'age' is missing"):
        first.result(10)
    assert value(second.result(10)[0]) == 3
    info = cache.info()
    assert (info.hits, info.misses, info.users) == (1, 2, 1)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_no_failure_blocks_a_user_for_good(kind: type[BaseException]) -> None:
    cache = StateCache(1 << 20)

    def fail() -> State:
        raise kind("out of memory")

    with pytest.raises(kind):
        cache.get(b"user", user(), fail)
    assert cache.get(b"user", user(), lambda: state(3), time.monotonic() + 10)[1] is False


def test_a_waiter_leaves_at_its_deadline_and_the_state_is_kept(pool: ThreadPoolExecutor) -> None:
    cache, slow = StateCache(1 << 20), Slow()
    first = pool.submit(cache.get, b"user", user(), slow)
    assert slow.started.wait(10)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"passed \d+\.\d ms before another request had computed the same"):
        cache.get(b"user", user(), slow, started + 0.05)
    assert 0.05 <= time.monotonic() - started < 5
    slow.go.set()
    assert value(first.result(10)[0]) == 7
    assert cache.get(b"user", user(), slow, started)[1] is True  # nothing to wait for
    assert slow.calls == 1


def test_a_state_computed_before_a_clear_is_not_kept_after_it(pool: ThreadPoolExecutor) -> None:
    cache, slow = StateCache(1 << 20), Slow()
    running = pool.submit(cache.get, b"user", user(), slow)
    assert slow.started.wait(10)
    cache.clear()
    assert value(cache.get(b"user", user(), lambda: state(2))[0]) == 2
    slow.go.set()
    assert value(running.result(10)[0]) == 7
    assert value(cache.get(b"user", user(), slow)[0]) == 2
    assert slow.calls == 1


def test_several_users_are_claimed_at_once() -> None:
    cache = StateCache(1 << 20)
    cache.get(b"a", user(), lambda: state(1))
    mine = cache.claim([b"a", b"b", b"c", b"b"])
    assert (set(mine.found), set(mine.mine), set(mine.theirs)) == ({b"a"}, {b"b", b"c"}, set())
    theirs = cache.claim([b"b", b"c"])
    assert (set(theirs.found), set(theirs.mine), set(theirs.theirs)) == (set(), set(), {b"b", b"c"})
    cache.keep(mine, b"b", user(), state(2))
    cache.release(mine)
    assert value(await_state(theirs.theirs[b"b"], None) or {}) == 2
    assert await_state(theirs.theirs[b"c"], None) is None
    info = cache.info()
    assert (info.hits, info.misses, info.users) == (4, 3, 2)
    assert set(cache.claim([b"b", b"c"]).mine) == {b"c"}


def test_what_is_evicted_is_counted_and_the_features_count_as_bytes() -> None:
    size = STATE_BYTES + USER_BYTES
    cache = StateCache(2 * size)
    for number in range(5):
        cache.get(b"%d" % number, user(number), lambda: state(1))
    info = cache.info()
    assert (info.users, info.bytes, info.evictions) == (2, 2 * size, 3)
    small = StateCache(size - 1)
    small.get(b"user", user(), lambda: state(1))
    assert (small.info().users, small.info().evictions) == (0, 0)


def test_entries_are_the_most_recent_first_and_copies_of_the_features() -> None:
    cache, given = StateCache(1 << 20), user(7)
    cache.get(b"7", given, lambda: state(1))
    cache.get(b"8", user(8), lambda: state(1))
    cache.get(b"7", given, lambda: state(1))
    array: Array = given["id"]
    array[0] = 99
    assert [int(entry.user["id"][0]) for _, entry in cache.entries()] == [7, 8]


def test_states_are_adopted_until_the_cache_is_full() -> None:
    old, size = StateCache(1 << 20), STATE_BYTES + USER_BYTES
    for number in range(4):
        old.get(b"%d" % number, user(number), lambda n=number: state(n))
    new = StateCache(3 * size)
    new.get(b"1", user(1), lambda: state(1))
    new.get(b"9", user(9), lambda: state(9))
    assert new.adopt(old) == 1
    assert [key for key, _ in new.entries()] == [b"9", b"1", b"3"]
    assert new.info().bytes == 3 * size
    assert new.adopt(old) == 0
    new.get(b"4", user(4), lambda: state(4))
    assert [key for key, _ in new.entries()] == [b"4", b"9", b"1"]
    roomy = StateCache(1 << 20)
    assert roomy.adopt(old) == 4
    assert [key for key, _ in roomy.entries()] == [key for key, _ in old.entries()]
    assert old.info().users == 4


def test_a_state_adopted_while_it_is_computed_is_counted_once() -> None:
    old, new = StateCache(1 << 20), StateCache(1 << 20)
    old.get(b"user", user(), lambda: state(1))

    def adopt_and_compute() -> State:
        assert new.adopt(old) == 1
        return state(1)

    new.get(b"user", user(), adopt_and_compute)
    assert (new.info().users, new.info().bytes) == (1, STATE_BYTES + USER_BYTES)
