"""Swaps while requests are scored: none is lost, none is scored by a corrupt bundle, no answer mixes two."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engines.serve.core.model_slot import ModelSlot
from engines.serve.errors import RankerClosed
from tests.engines.serve.swap import bundles
from tests.engines.serve.swap.watching import watching


@contextmanager
def scoring(slot: ModelSlot, want: dict[str, list[np.ndarray]], threads: int = 2) -> Iterator[list[str]]:
    """Score in several threads as the workers do, and compare every score with that of the version it came from."""
    stop, wrong = threading.Event(), []
    answered: list[str] = []

    def work(seed: int) -> None:
        turn = seed
        while not stop.is_set():
            turn += 1
            time.sleep(0.001)  # leaves the watcher some of the interpreter
            user = turn % bundles.USERS
            while True:
                served = slot.current()
                try:
                    got = served.ranker.score(*bundles.request(user))["like"]
                    break
                except RankerClosed:
                    if slot.current() is served:
                        wrong.append(f"{served.version} closed although it serves")
                        return
                except Exception as error:
                    wrong.append(f"{served.version}: {error!r}")
                    return
            if not np.array_equal(got, want[served.version][user]):
                wrong.append(f"{served.version}: other scores")
            answered.append(served.version)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield answered
    finally:
        stop.set()
        for worker in workers:
            worker.join(20)
    assert wrong == []


def test_swaps_under_load_lose_nothing_and_serve_no_corrupt_bundle(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    scores = [bundles.expected(b) for b in (built_bundle, second_bundle)]
    want = {bundles.put(built_bundle, path): scores[0]}
    with watching(path) as watched, scoring(watched.slot, want) as answered:
        refused = 0
        for turn in range(8):
            source = (second_bundle, built_bundle)[turn % 2]
            if turn % 4 == 3:
                bundles.put(source, path, _corrupt(turn))
                refused += 1
                watched.wait(lambda: watched.counted("refused") == refused, "the corrupt bundle was not refused")  # noqa: B023  # called at once
                continue
            folder = path.parent / "next"
            version = bundles.put(source, folder, bundles.renamed(f"turn {turn}"))
            want[version] = scores[(turn + 1) % 2]  # before it can serve
            bundles.put(folder, path)
            watched.wait_for(version)
            watched.wait_swaps(turn + 1)
            if turn % 5 == 4:
                watched.watcher.rollback()
                watched.watcher.reload()
        count = len(answered)
        watched.wait(lambda: len(answered) > count, "scoring stopped")
    assert watched.counted("refused") == refused == 2
    assert len(set(answered)) >= 6


def _corrupt(turn: int) -> Callable[[Path], object]:
    """Damage a bundle that has a version of its own."""

    def change(work: Path) -> None:
        bundles.renamed(f"turn {turn}")(work)
        (bundles.cut if turn % 8 == 3 else bundles.flip_a_byte)(bundles.engine_file(work, "item"))

    return change
