"""A watcher at work on a path, for tests."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady
from engines.serve.observe.log import make_log
from engines.serve.observe.metrics import Metrics
from engines.serve.settings import ServeSettings
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.swap_log import SwapLog
from engines.serve.swap.watcher import Watcher

WATCH = 0.02  # seconds


@dataclass
class Watched:
    """A watcher, and what it works on."""

    watcher: Watcher
    slot: ModelSlot
    swaps: SwapLog
    metrics: Metrics
    lines: io.StringIO
    loads: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        return self.slot.current().version

    def outcomes(self) -> list[str]:
        return [swap.outcome for swap in self.swaps.newest()][::-1]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < until, f"{what}: {self.lines.getvalue()}"
            time.sleep(0.005)

    def wait_for(self, version: str) -> None:
        self.wait(lambda: self.version == version, f"{version} never served")

    def wait_swaps(self, count: int) -> None:
        self.wait(lambda: len(self.swaps.newest()) >= count, f"fewer than {count} swaps")

    def counted(self, outcome: str) -> int:
        return self.metric(f'ugsep_swaps_total{{outcome="{outcome}"}}')

    def metric(self, name: str) -> int:
        found = [line for line in self.metrics.render()[0].decode().splitlines() if line.startswith(f"{name} ")]
        return int(float(found[0].split()[-1])) if found else 0


@contextmanager
def watching(path: Path, start: bool = True, watch: float = WATCH, load=load_bundle) -> Iterator[Watched]:
    """Serve what lies at a path and watch it."""
    lines = io.StringIO()
    log, _ = make_log(lines)
    settings = ServeSettings(path, watch_seconds=watch)
    slot, swaps, metrics = ModelSlot(), SwapLog(), Metrics()
    slot.switch(load_bundle(settings))
    metrics.watch(lambda: (0, 0), lambda: loaded(slot))
    loads: list[str] = []

    def counted(settings: ServeSettings, previous: ServedBundle, notify: Callable[[str], None]) -> ServedBundle:
        loads.append(str(path))
        return load(settings, previous, notify)

    watcher = Watcher(settings, slot, swaps, log, metrics, counted)
    with ExitStack() as undo:
        undo.callback(slot.close, 5)
        undo.callback(watcher.stop, 20)
        if start:
            watcher.start()
        yield Watched(watcher, slot, swaps, metrics, lines, loads)


def loaded(slot: ModelSlot) -> list[ServedBundle]:
    """Both bundles of a slot, none of a closed one."""
    try:
        return [found for found in (slot.current(), slot.previous()) if found is not None]
    except NotReady:
        return []


def looks(watched: Watched, times: int = 5) -> None:
    """Wait until the watcher has looked a few times more."""
    time.sleep(times * WATCH + 0.05)
    with watched.watcher._looking:
        return
