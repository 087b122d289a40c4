"""An LRU cache of user states in which concurrent lookups of one state compute it once."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from engines.backends.contract import Array, DeviceArray
from engines.serve.deadlines import check_deadline

__all__ = ["CacheInfo", "Claims", "Entry", "State", "StateCache", "User"]

State = dict[str, Array | DeviceArray]
User = Mapping[str, Array]  # one user's features, one row each
#: A state that a thread computes; None if that failed, and whoever waits must compute it.
Pending = Future[State | None]


@dataclass(frozen=True)
class CacheInfo:
    """Counters of the user-state cache: hits, misses, evictions, users and bytes held, and the byte limit.

    A lookup that waited for another thread to compute the same user counts as a hit; if that thread failed, the
    lookup starts over and counts again. A state that is too large to be kept at all does not count as evicted.
    """

    hits: int
    misses: int
    users: int
    bytes: int
    limit: int
    evictions: int = 0

    @property
    def hit_ratio(self) -> float:
        """Share of lookups that hit, 0 before the first lookup."""
        looked = self.hits + self.misses
        return self.hits / looked if looked else 0.0


class Entry(NamedTuple):  # a dataclass takes several times as long to make, on every miss
    """A user's state, and the features it was computed from; ``bytes`` is the size of both."""

    state: State
    user: User
    bytes: int


@dataclass(frozen=True)
class Claims:
    """What one thread found about several users: their states, those it must compute, those that others compute."""

    found: dict[bytes, State]
    mine: dict[bytes, Pending]
    theirs: dict[bytes, Pending]


class StateCache:
    """States by key, up to ``limit`` bytes; thread-safe.

    No lock is held while a state is computed. A thread that computes several states claims all of them at once and
    ends each claim before it waits for another thread, so threads cannot wait for each other in a circle.
    """

    def __init__(self, limit: int) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._running: dict[bytes, Pending] = {}
        self._bytes, self._limit = 0, limit
        self._hits = self._misses = self._evictions = 0
        self._lock = threading.Lock()

    def get(
        self, key: bytes, user: User, compute: Callable[[], State], deadline: float | None = None
    ) -> tuple[State, bool]:
        """Return the state of a key, and whether it was a hit; ``compute`` makes it on a miss.

        A thread that needs a key which another thread is computing waits for it until ``deadline``, a time of
        ``time.monotonic()``. If the other thread fails, this one computes the state.

        Raises:
            DeadlineExceeded: while waiting for another thread.
        """
        while True:
            with self._lock:
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    self._hits += 1
                    return entry.state, True
                running = self._running.get(key)
                if running is None:
                    mine = self._running[key] = Future()
                    self._misses += 1
                    break
                self._hits += 1
            waited = await_state(running, deadline)
            if waited is not None:
                return waited, True
        state: State | None = None
        try:
            state = compute()
            return state, False
        finally:
            self._end(key, mine, user, state)

    def claim(self, lookups: Iterable[bytes]) -> Claims:
        """Look up several keys at once, each as often as it is given, and claim those that nobody has or computes.

        The caller ends every claim of ``mine`` with ``keep`` or ``release`` before it waits for ``theirs``.
        """
        counted = Counter(lookups)
        found: dict[bytes, State] = {}
        mine: dict[bytes, Pending] = {}
        theirs: dict[bytes, Pending] = {}
        with self._lock:
            for key in counted:
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    found[key] = entry.state
                elif key in self._running:
                    theirs[key] = self._running[key]
                else:
                    mine[key] = self._running[key] = Future()
            self._misses += len(mine)
            self._hits += counted.total() - len(mine)
        return Claims(found, mine, theirs)

    def keep(self, claims: Claims, key: bytes, user: User, state: State) -> None:
        """End a claim with the computed state: cache it, unless the cache was cleared meanwhile, and wake waiters."""
        self._end(key, claims.mine[key], user, state)

    def release(self, claims: Claims) -> None:
        """End the claims that no state was kept for; threads that wait for one compute it themselves."""
        for key, pending in claims.mine.items():
            if not pending.done():
                self._end(key, pending, {}, None)

    def adopt(self, other: StateCache) -> int:
        """Add the states of another cache, its most recent ones if not all fit, and return their number.

        States that are here already stay. The arrays are shared, not copied.
        """
        fit: list[tuple[bytes, Entry]] = []
        theirs = other.entries()
        with self._lock:
            room = self._limit - self._bytes
            for key, entry in theirs:
                if key in self._entries:
                    continue
                room -= entry.bytes
                if room < 0:
                    break
                fit.append((key, entry))
            for key, entry in fit:  # the most recent one first, each before, that is older than, the last
                self._entries[key] = entry
                self._entries.move_to_end(key, last=False)
                self._bytes += entry.bytes
        return len(fit)

    def entries(self) -> list[tuple[bytes, Entry]]:
        """Return what is cached, the most recently used first."""
        with self._lock:
            return list(reversed(self._entries.items()))

    def info(self) -> CacheInfo:
        """Return the counters."""
        with self._lock:
            held = len(self._entries)
            return CacheInfo(self._hits, self._misses, held, self._bytes, self._limit, self._evictions)

    def clear(self) -> None:
        """Drop every state; states still being computed are returned to their callers but not cached."""
        with self._lock:
            self._entries.clear()
            self._running.clear()
            self._bytes = 0

    def reset_counters(self) -> None:
        """Count hits, misses and evictions from 0 again."""
        with self._lock:
            self._hits = self._misses = self._evictions = 0

    def _end(self, key: bytes, mine: Pending, user: User, state: State | None) -> None:
        """Store the computed state, if there is one, and hand it to the threads that wait for it."""
        try:
            if state is None:
                self._store(key, mine, None)
            else:
                size = _size(state) + _size(user)
                # The caller's arrays may change, or belong to a larger buffer.
                copied = {name: value.copy() for name, value in user.items()} if size <= self._limit else {}
                self._store(key, mine, Entry(state, copied, size))
        finally:
            mine.set_result(state)

    def _store(self, key: bytes, mine: Pending, entry: Entry | None) -> None:
        """End a claim, and cache the entry unless it is too large or the cache was cleared in the meantime."""
        with self._lock:
            if self._running.get(key) is not mine:
                return
            del self._running[key]
            if entry is None or entry.bytes > self._limit:
                return
            old = self._entries.pop(key, None)  # adopted while it was computed
            self._bytes += entry.bytes - (old.bytes if old is not None else 0)
            self._entries[key] = entry
            while self._bytes > self._limit:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= oldest.bytes
                self._evictions += 1


def await_state(pending: Pending, deadline: float | None) -> State | None:
    """Return the state that another thread computes, or None if that failed.

    Raises:
        DeadlineExceeded: the deadline, a time of ``time.monotonic()``, passed first.
    """
    while True:
        try:
            return pending.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            check_deadline(deadline, "another request had computed the same user")


def _size(arrays: Mapping[str, Array | DeviceArray]) -> int:
    return sum(a.nbytes for a in arrays.values())
