"""The miss report: which user features change between two misses of one user."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

from engines.backends.contract import Array

__all__ = ["MissReport"]

_DIGEST = 8  # bytes per feature: a false 'unchanged' once in 2^64
_WINDOW = 10_000


class MissReport:
    """Compares the user features of each cache miss with those of the last miss of the same routing key; thread-safe.

    A feature that differs every time, a timestamp for example, makes the cache useless; this finds it. At most
    ``limit`` keys are remembered, the least recently missed are forgotten. A key is kept as a hash with a salt of
    this process, a feature as a digest. Older misses count less: all counts are halved every 10,000 misses.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._salt = secrets.token_bytes(16)
        self._last: OrderedDict[bytes, dict[str, bytes]] = OrderedDict()
        self._changed: Counter[str] = Counter()
        self._compared = 0
        self._lock = threading.Lock()

    def record(self, routing_key: str, user: Mapping[str, Array]) -> None:
        """Note a miss; requests without a key, or of several users, tell nothing and are ignored."""
        if not routing_key or any(value.shape[:1] != (1,) for value in user.values()):
            return
        key = self._digest(routing_key.encode(errors="surrogatepass"), 16)
        features = {name: self._feature(value) for name, value in user.items()}
        with self._lock:
            before = self._last.pop(key, None)
            self._last[key] = features
            if len(self._last) > self._limit:
                self._last.popitem(last=False)
            if before is None:
                return
            self._compared += 1
            self._changed.update(name for name, value in features.items() if before.get(name) not in (None, value))
            if self._compared >= _WINDOW:
                self._compared //= 2
                self._changed = Counter({name: count // 2 for name, count in self._changed.items()})

    def features(self) -> list[dict[str, Any]]:
        """Return the ``misses`` of the status page: per feature how often and in what share of misses it had changed.

        The feature that changed most is first. A miss in which none changed was an eviction or a new bundle.
        """
        with self._lock:
            compared, changed = self._compared, self._changed.most_common()
        return [
            {"feature": name, "share": round(count / compared, 4), "count": count} for name, count in changed if count
        ]

    def _digest(self, value: bytes, size: int) -> bytes:
        return hashlib.blake2b(value, digest_size=size, key=self._salt).digest()

    def _feature(self, value: Array) -> bytes:
        return self._digest(f"{value.dtype.str}{value.shape}".encode() + value.tobytes(), _DIGEST)
