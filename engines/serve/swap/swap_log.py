"""The last changes of the bundle that serves, for the status page."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Outcome", "Swap", "SwapLog"]

Outcome = Literal["serving", "refused", "rolled back"]
_KEPT = 20


@dataclass(frozen=True)
class Swap:
    """One change, or a refused one.

    ``at`` is when it ended, in Unix seconds; ``before`` and ``after`` are versions, ``after`` empty if there was no
    manifest; ``reason`` says why it was refused, or how it was warmed; ``seconds`` is how long it took.
    """

    at: float
    before: str
    after: str
    outcome: Outcome
    reason: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the change as ``/status`` holds it."""
        return {
            "at": self.at,
            "from": self.before,
            "to": self.after,
            "outcome": self.outcome,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
        }


class SwapLog:
    """The last 20 changes; thread-safe."""

    def __init__(self) -> None:
        self._swaps: deque[Swap] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    def add(self, swap: Swap) -> None:
        """Remember a change."""
        with self._lock:
            self._swaps.appendleft(swap)

    def newest(self) -> list[Swap]:
        """Return the changes, newest first."""
        with self._lock:
            return list(self._swaps)
