"""The slot of the current and the previous bundle."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.bundle.manifest import read_manifest
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError
from tests import tiny

Load = Callable[[str], ServedBundle]


@pytest.fixture
def load(built_bundle: Path) -> Load:
    manifest = read_manifest(built_bundle)

    def load(version: str) -> ServedBundle:
        return ServedBundle("tiny", version, built_bundle, manifest, Ranker.from_bundle(built_bundle))

    return load


def scores(served: ServedBundle) -> bool:
    try:
        served.ranker.score(*tiny.user_and_items(2))
    except UgsepError:
        return False
    return True


def test_nothing_serves_before_the_first_bundle() -> None:
    slot = ModelSlot()
    assert slot.previous() is None
    with pytest.raises(NotReady, match="no bundle loaded"):
        slot.current()
    with pytest.raises(UgsepError, match="no previous bundle"):
        slot.rollback()


def test_a_switch_keeps_one_bundle_and_closes_the_one_before(load: Load) -> None:
    slot, (a, b, c) = ModelSlot(), (load(v) for v in "abc")
    slot.switch(a)
    assert (slot.current(), slot.previous()) == (a, None)
    slot.switch(b)
    assert (slot.current(), slot.previous()) == (b, a)
    assert scores(a), "kept for a rollback"
    slot.switch(c)
    assert slot.wait_retired(10)
    assert [scores(served) for served in (a, b, c)] == [False, True, True]


def test_a_rollback_exchanges_the_two_and_a_later_switch_closes_the_one_rolled_back_from(load: Load) -> None:
    slot, (a, b, c) = ModelSlot(), (load(v) for v in "abc")
    slot.switch(a)
    slot.switch(b)
    assert slot.rollback() is a
    assert (slot.current(), slot.previous()) == (a, b)
    slot.switch(c)
    assert slot.wait_retired(10)
    assert [scores(served) for served in (a, b, c)] == [True, False, True]


def test_a_switch_does_not_wait_for_the_calls_that_run_on_the_bundle_it_retires(
    load: Load, built_bundle: Path
) -> None:
    closing, release = threading.Event(), threading.Event()

    class SlowToClose(Ranker):
        def close(self, *args: object) -> None:
            closing.set()
            assert release.wait(10)
            super().close()

    a, b, c = (load(v) for v in "abc")
    a = dataclasses.replace(a, ranker=SlowToClose.from_bundle(built_bundle))
    slot = ModelSlot()
    for served in (a, b, c):
        slot.switch(served)
    assert closing.wait(10)
    assert slot.current() is c
    assert scores(a), "still open"
    assert not slot.wait_retired(0)
    release.set()
    assert slot.wait_retired(10)
    assert not scores(a)


def test_a_closed_slot_serves_nothing_and_closes_what_is_loaded_too_late(load: Load) -> None:
    slot, (a, b, c) = ModelSlot(), (load(v) for v in "abc")
    slot.switch(a)
    slot.switch(b)
    assert slot.close(10)
    with pytest.raises(NotReady):
        slot.current()
    with pytest.raises(NotReady, match="stopping"):
        slot.switch(c)
    assert slot.wait_retired(10)
    assert not any(scores(served) for served in (a, b, c))
