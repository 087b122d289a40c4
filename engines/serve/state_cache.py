"""An LRU cache of user states in which concurrent lookups of one state compute it once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from engines.backends.contract import Array, DeviceArray

State = dict[str, Array | DeviceArray]


@dataclass(frozen=True)
class CacheInfo:
    """Counters of the user-state cache: hits, misses, users and bytes held, and the byte limit.

    A lookup that waited for another thread to compute the same user counts as a hit.
    """

    hits: int
    misses: int
    users: int
    bytes: int
    limit: int

    @property
    def hit_ratio(self) -> float:
        """Share of lookups that hit, 0 before the first lookup."""
        looked = self.hits + self.misses
        return self.hits / looked if looked else 0.0


class StateCache:
    """States by key, up to ``limit`` bytes; thread-safe."""

    def __init__(self, limit: int) -> None:
        self._states: OrderedDict[bytes, State] = OrderedDict()
        self._running: dict[bytes, Future[State]] = {}
        self._bytes, self._limit = 0, limit
        self._hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, key: bytes, compute: Callable[[], State]) -> State:
        """Return the state of a key, computing it on a miss.

        Threads that need a key which another thread is computing wait for its result or its exception.
        """
        with self._lock:
            found = self._states.get(key)
            if found is not None:
                self._states.move_to_end(key)
                self._hits += 1
                return found
            running = self._running.get(key)
            if running is None:
                mine = self._running[key] = Future()
                self._misses += 1
            else:
                self._hits += 1
        if running is not None:
            return running.result()
        try:
            state = compute()
        except BaseException as error:
            self._end(key, mine)
            mine.set_exception(error)
            raise
        self._end(key, mine, state)
        mine.set_result(state)
        return state

    def info(self) -> CacheInfo:
        """Return the counters."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._states), self._bytes, self._limit)

    def clear(self) -> None:
        """Drop every state; states still being computed are returned to their callers but not cached."""
        with self._lock:
            self._states.clear()
            self._running.clear()
            self._bytes = 0

    def _end(self, key: bytes, mine: Future[State], state: State | None = None) -> None:
        """Store the computed state, unless the cache was cleared in the meantime."""
        with self._lock:
            if self._running.get(key) is not mine:
                return
            del self._running[key]
            size = sum(a.nbytes for a in state.values()) if state is not None else 0
            if state is None or size > self._limit:
                return
            self._states[key] = state
            self._bytes += size
            while self._bytes > self._limit:
                _, old = self._states.popitem(last=False)
                self._bytes -= sum(a.nbytes for a in old.values())
