"""Watch the path of the bundle, and replace the bundle that serves when another one is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady
from engines.serve.observe.log import Log
from engines.serve.observe.metrics import Metrics
from engines.serve.settings import ServeSettings
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.snapshot import Snapshot, is_complete, manifest_version, take_snapshot
from engines.serve.swap.swap_log import Outcome, Swap, SwapLog
from graphs.base.errors import UgsepError, first_line, printable_line

__all__ = ["Watcher"]

Load = Callable[[ServeSettings, ServedBundle, Callable[[str], None]], ServedBundle]


class Watcher:
    """Looks at the bundle's path every ``watch_seconds``, and at once on ``poke``; loads, proves and switches.

    A bundle that fails in any way never serves, and is tried again only when its files change. Files that are still
    being written are left alone until two looks find the same. After a rollback, the bundle that was rolled back from
    stays out until something else lies at the path or ``reload`` asks for it.
    """

    def __init__(
        self,
        settings: ServeSettings,
        slot: ModelSlot,
        swaps: SwapLog,
        log: Log,
        metrics: Metrics,
        load: Load = load_bundle,
    ) -> None:
        self._settings, self._slot, self._load = settings, slot, load
        self._swaps, self._log, self._metrics = swaps, log, metrics
        self._handled: Snapshot | None = None  # what was loaded or refused last
        self._seen: Snapshot | None = None  # at the look before, while the files may still be changing
        self._held: tuple[str, tuple[int, int]] | None = None  # the version rolled back from, and its directory
        self._refusal: tuple[str, str] | None = None  # version and reason of the last one
        self._absent = False
        self._looking = threading.Lock()
        self._switching = threading.Lock()  # never held while something is loaded
        self._wake, self._forced, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ugsep-watcher", daemon=True)

    def start(self) -> None:
        """Start the thread; a first bundle must serve already."""
        self._thread.start()

    def poke(self) -> None:
        """Load what lies at the path, in the watcher's thread; returns at once, so a signal handler may call it."""
        self._forced.set()
        self._wake.set()

    def reload(self) -> Swap | None:
        """Load what lies at the path, even if it was refused or rolled back from; return None if it already serves.

        A bundle that fails is in the result as refused.

        Raises:
            NotReady: the server is stopping.
        """
        return self._look(force=True)

    def rollback(self) -> Swap:
        """Serve the previous bundle again, at once, even if another one is being loaded.

        Raises:
            UgsepError: there is no previous bundle.
        """
        started = time.monotonic()
        with self._switching:
            before, after = self._slot.current(), self._slot.rollback()
        now = take_snapshot(self._settings.bundle)
        if now.has_bundle and _version_at(now) == before.version:
            self._held = (before.version, now.directory)
        return self._record(before.version, after.version, "rolled back", "", started)

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread; wait up to ``timeout`` seconds if a bundle is being loaded; return whether it ended."""
        self._stopped.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait(self._settings.watch_seconds or None)
            self._wake.clear()
            if self._stopped.is_set():
                return
            forced = self._forced.is_set()
            self._forced.clear()
            try:
                if self._look(forced) is None and forced:
                    self._log.info("nothing to reload", version=self._slot.current().version)
            except NotReady:
                return  # the slot was closed: the server is stopping
            except Exception as error:
                self._log.bug(error)

    def _look(self, force: bool) -> Swap | None:
        with self._looking:
            found = take_snapshot(self._settings.bundle)
            if found == self._handled and not force:
                return None
            serving = self._slot.current()
            version = _version_at(found)
            if not version and not force:
                self._note_absence()
                return None
            self._absent = False
            if version == serving.version:
                self._handled = self._seen = found
                self._held = None
                return None
            if not force and not self._is_due(found, version):
                return None
            return self._replace(found, version, serving, force)

    def _is_due(self, found: Snapshot, version: str) -> bool:
        """Whether what lies at the path may be tried: not rolled back from, and not still being written."""
        if self._held == (version, found.directory):
            return False
        unchanged, self._seen = found == self._seen, found
        # A directory or link that was replaced whole needs no second look.
        replaced = self._handled is None or found.directory != self._handled.directory
        return unchanged or (replaced and is_complete(found.root))

    def _replace(self, found: Snapshot, version: str, serving: ServedBundle, force: bool) -> Swap:
        started = time.monotonic()
        lines: list[str] = []
        try:
            new = self._load(self._settings, serving, lines.append)
            replaced = self._switch(new) or serving  # not 'serving' if there was a rollback meanwhile
        except NotReady:
            raise
        except Exception as error:  # also MemoryError or a bug: whatever happens here, the old bundle serves on
            if not isinstance(error, UgsepError):
                self._log.bug(error)
            reason = printable_line(str(error) if isinstance(error, UgsepError) else _named(error))
            self._handled = found
            swap = Swap(time.time(), serving.version, version, "refused", reason, time.monotonic() - started)
            if force or self._refusal != (version, reason):  # files that arrive slowly fail again and again
                self._note(swap)
            self._refusal = (version, reason)
            return swap
        self._handled, self._held, self._refusal = found, None, None
        reason = "; ".join([*lines, *_changed_interface(replaced, new)])
        return self._record(replaced.version, new.version, "serving", reason, started)

    def _switch(self, new: ServedBundle) -> ServedBundle | None:
        """Serve a bundle, or close it."""
        try:
            with self._switching:
                self._metrics.count_caches()
                return self._slot.switch(new)
        except BaseException:
            new.ranker.close()
            raise

    def _record(self, before: str, after: str, outcome: Outcome, reason: str, started: float) -> Swap:
        swap = Swap(time.time(), before, after, outcome, reason, time.monotonic() - started)
        self._note(swap)
        return swap

    def _note(self, swap: Swap) -> None:
        self._metrics.count("swaps", "Changes of the bundle that serves, by outcome.", "outcome", swap.outcome)
        write = self._log.info if swap.outcome == "serving" else self._log.warning
        fields = {"before": swap.before, "after": swap.after, "seconds": round(swap.seconds, 3)}
        write(f"bundle {swap.outcome}", **fields, reason=swap.reason)
        self._swaps.add(swap)  # last: who sees it finds it counted and logged

    def _note_absence(self) -> None:
        if not self._absent:
            self._absent = True
            self._log.warning("no bundle at the path, the loaded one serves on", path=self._settings.bundle)


def _version_at(found: Snapshot) -> str:
    """Return the version at a path; empty if there is no manifest."""
    try:
        return manifest_version(found.root) if found.has_bundle else ""
    except UgsepError:
        return ""  # it vanished since


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _changed_interface(old: ServedBundle, new: ServedBundle) -> list[str]:
    """Return a line if the features or tasks differ: callers that are not told send requests that are refused."""
    had = {spec.name: spec for spec in (*old.ranker.user_inputs, *old.ranker.item_inputs)}
    has = {spec.name: spec for spec in (*new.ranker.user_inputs, *new.ranker.item_inputs)}
    features = [name for name in {*had, *has} if had.get(name) != has.get(name)]
    tasks = {*old.ranker.outputs} ^ {*new.ranker.outputs}
    return [
        f"{what} changed: {', '.join(sorted(names))}"
        for what, names in (("the features of a request", features), ("the tasks", tasks))
        if names
    ]
