"""The bundle that serves, and the one before it."""

from __future__ import annotations

import threading

from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady
from graphs.base.errors import UgsepError

__all__ = ["ModelSlot"]


class ModelSlot:
    """Two bundles in memory: the current one, and its predecessor for a rollback; thread-safe.

    A call takes ``current()`` once and finishes on what it got, so no answer mixes two bundles. A ranker is closed
    when its bundle leaves the slot, in a thread of its own: closing waits for the calls that still run on it.
    """

    def __init__(self) -> None:
        self._current: ServedBundle | None = None
        self._previous: ServedBundle | None = None
        self._retiring: list[threading.Thread] = []
        self._closed = False
        self._lock = threading.Lock()

    def current(self) -> ServedBundle:
        """Return the bundle that serves.

        Raises:
            NotReady: none is loaded yet, or the slot was closed.
        """
        found = self._current  # one read, so that no lock is taken per request
        if found is None:
            raise NotReady("the server has no bundle loaded yet; retry in a moment or on another replica")
        return found

    def previous(self) -> ServedBundle | None:
        """Return the bundle that a rollback would serve."""
        return self._previous

    def switch(self, new: ServedBundle) -> ServedBundle | None:
        """Serve ``new`` from the next call on, and return the bundle that it replaced.

        The one before that is closed when its calls have ended.

        Raises:
            NotReady: the slot was closed; ``new`` is closed too.
        """
        with self._lock:
            if self._closed:
                self._retire(new)
                raise NotReady("the server is stopping; start it again to serve the new bundle")
            if self._previous is not None:
                self._retire(self._previous)
            self._previous, self._current = self._current, new
            return self._previous

    def rollback(self) -> ServedBundle:
        """Exchange the current and the previous bundle, and return the one that serves now.

        Raises:
            UgsepError: there is no previous bundle.
        """
        with self._lock:
            if self._previous is None:
                raise UgsepError("no previous bundle to roll back to; publish the old bundle at the served path")
            self._current, self._previous = self._previous, self._current
            return self._current

    def close(self, timeout: float | None = None) -> bool:
        """Close both bundles and wait up to ``timeout`` seconds; return whether every ranker was closed by then."""
        with self._lock:
            self._closed = True
            for served in (self._current, self._previous):
                if served is not None:
                    self._retire(served)
            self._current = self._previous = None
        return self.wait_retired(timeout)

    def wait_retired(self, timeout: float | None = None) -> bool:
        """Wait until the rankers that left the slot are closed, up to ``timeout`` seconds each; return whether."""
        with self._lock:
            retiring = list(self._retiring)
        for thread in retiring:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in retiring)

    def _retire(self, served: ServedBundle) -> None:
        self._retiring = [thread for thread in self._retiring if thread.is_alive()]
        # A daemon: a call that never ends must not keep the process alive.
        thread = threading.Thread(target=served.ranker.close, name=f"close {served.version}", daemon=True)
        self._retiring.append(thread)
        thread.start()
