"""Whether the server is loading, ready or draining."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

__all__ = ["Lifecycle", "State"]

State = Literal["loading", "ready", "draining"]


class Lifecycle:
    """The state of the server; thread-safe. It starts as ``loading``, and never leaves ``draining``."""

    def __init__(self) -> None:
        self._state: State = "loading"
        self._listeners: list[Callable[[State], None]] = []
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """The current state."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self._state == "ready"

    def on_change(self, listener: Callable[[State], None]) -> None:
        """Call ``listener`` with the current state now and with each later one, in the thread that changes it."""
        with self._lock:
            self._listeners.append(listener)
            state = self._state
        listener(state)

    def change(self, state: State) -> None:
        """Go to a state; from ``draining`` there is no way back."""
        with self._lock:
            if self._state in ("draining", state):
                return
            self._state = state
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(state)
