"""The watcher: what replaces the bundle that serves, and what never does."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import RankerClosed
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.snapshot import manifest_version
from graphs.base.errors import UgsepError
from tests.engines.serve.swap import bundles
from tests.engines.serve.swap.watching import looks, watching


def test_a_published_bundle_replaces_the_one_that_serves(built_bundle: Path, second_bundle: Path, path: Path) -> None:
    first = bundles.put(built_bundle, path)
    with watching(path) as watched:
        assert watched.version == first
        second = bundles.put(second_bundle, path)
        watched.wait_for(second)
        np.testing.assert_array_equal(bundles.scores(watched.slot.current()), bundles.expected(second_bundle))
        previous = watched.slot.previous()
        assert previous is not None
        assert previous.version == first
        np.testing.assert_array_equal(bundles.scores(previous), bundles.expected(built_bundle))
        watched.wait_swaps(1)
        (swap,) = watched.swaps.newest()
        assert (swap.before, swap.after, swap.outcome) == (first, second, "serving")
        assert watched.counted("serving") == 1
        looks(watched)
        assert len(watched.loads) == 1, "what serves is not loaded again"


def test_a_link_that_is_replaced_and_a_copy_over_the_old_files_are_noticed(
    built_bundle: Path, second_bundle: Path, path: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in "ab"]
    versions = [bundles.put(b, f) for b, f in zip((built_bundle, second_bundle), folders, strict=True)]
    path.parent.mkdir()
    path.symlink_to(folders[0])
    with watching(path) as watched:
        new = path.with_name("new")
        new.symlink_to(folders[1])
        os.replace(new, path)
        watched.wait_for(versions[1])
        new.symlink_to(folders[0])
        os.replace(new, path)
        watched.wait_for(versions[0])
        bundles.renamed("c")(folders[0])  # written in place
        watched.wait_for(manifest_version(folders[0]))
        watched.wait_swaps(3)
        assert watched.outcomes() == ["serving"] * 3


def test_a_directory_that_is_copied_file_by_file_is_loaded_when_it_is_whole(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    first = bundles.put(built_bundle, path)
    with watching(path, watch=0.1) as watched:
        shutil.rmtree(path)
        looks(watched)
        assert watched.version == first
        path.mkdir()
        # The manifest first, then a file every 10 ms: the directory never stays the same for two looks.
        files = sorted(f for f in second_bundle.rglob("*") if f.is_file() and f.name != "manifest.json")
        for file in [second_bundle / "manifest.json", *files]:
            copy = path / file.relative_to(second_bundle)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
            assert watched.version == first
            time.sleep(0.01)
        watched.wait_for(manifest_version(second_bundle))
        assert watched.outcomes() == ["serving"], watched.lines.getvalue()
        assert watched.lines.getvalue().count("no bundle at the path") == 1


def test_a_bundle_that_fails_never_serves_and_is_tried_again_only_when_it_changes(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    first = bundles.put(built_bundle, path)
    with watching(path) as watched:
        bad = bundles.put(second_bundle, path, lambda work: bundles.flip_a_byte(bundles.engine_file(work, "item")))
        watched.wait_swaps(1)
        looks(watched)
        (swap,) = watched.swaps.newest()
        assert (swap.before, swap.after, swap.outcome) == (first, bad, "refused")
        assert "sha256" in swap.reason
        assert len(watched.loads) == 1
        assert watched.version == first
        assert watched.slot.previous() is None
        assert watched.counted("refused") == 1
        (line,) = [line for line in watched.lines.getvalue().splitlines() if "bundle refused" in line]
        assert "sha256" in line
        shutil.copy(bundles.engine_file(second_bundle, "item"), bundles.engine_file(path, "item"))
        watched.wait_for(bad)


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(5, "Input/output error"), ZeroDivisionError()])
def test_no_failure_of_any_kind_stops_the_old_bundle(
    built_bundle: Path, second_bundle: Path, path: Path, error: Exception
) -> None:
    failing = [error]

    def load(*args) -> ServedBundle:
        if failing:
            raise failing.pop()
        return load_bundle(*args)

    first = bundles.put(built_bundle, path)
    with watching(path, load=load) as watched:
        second = bundles.put(second_bundle, path)
        watched.wait_swaps(1)
        assert watched.outcomes() == ["refused"]
        assert type(error).__name__ in watched.swaps.newest()[0].reason
        assert "internal error" in watched.lines.getvalue()
        assert watched.version == first
        swap = watched.watcher.reload()  # what failed for want of memory can be asked for again
        assert swap is not None
        assert (swap.outcome, watched.version) == ("serving", second)


def test_a_rollback_holds_until_something_else_lies_at_the_path(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    first = bundles.put(built_bundle, path)
    with watching(path) as watched:
        with pytest.raises(UgsepError, match="no previous bundle"):
            watched.watcher.rollback()
        second = bundles.put(second_bundle, path)
        watched.wait_swaps(1)
        swap = watched.watcher.rollback()
        assert (swap.before, swap.after, swap.outcome) == (second, first, "rolled back")
        assert watched.version == first
        (path / "report.json").touch()  # a backup program, for example: still the same bundle
        looks(watched)
        assert watched.version == first
        assert len(watched.loads) == 1
        third = bundles.put(second_bundle, path, bundles.renamed("third"))
        watched.wait_for(third)
        watched.wait_swaps(3)
        assert watched.outcomes() == ["serving", "rolled back", "serving"]
        assert watched.watcher.rollback().after == first


def test_what_was_rolled_back_from_comes_back_if_it_is_published_again_or_asked_for(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    first = bundles.put(built_bundle, path)
    with watching(path) as watched:
        second = bundles.put(second_bundle, path)
        watched.wait_swaps(1)
        assert watched.watcher.rollback().after == first
        bundles.put(second_bundle, path)
        watched.wait_for(second)
        watched.wait_swaps(3)
        watched.watcher.rollback()
        swap = watched.watcher.reload()
        assert swap is not None
        assert (swap.before, swap.after) == (first, second)
        assert watched.watcher.reload() is None, "it serves already"


def test_poke_looks_at_once_and_without_watching_nothing_else_does(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    first = bundles.put(built_bundle, path)
    with watching(path, watch=0.0) as watched:
        second = bundles.put(second_bundle, path)
        time.sleep(0.1)
        assert watched.version == first
        watched.watcher.poke()
        watched.wait_for(second)


def test_who_asks_for_a_reload_reads_in_the_log_that_nothing_is_new(built_bundle: Path, path: Path) -> None:
    version = bundles.put(built_bundle, path)
    with watching(path, watch=0) as watched:
        watched.watcher.poke()
        watched.wait(lambda: "nothing to reload" in watched.lines.getvalue(), "no word in the log")
        (line,) = [line for line in watched.lines.getvalue().splitlines() if "nothing to reload" in line]
        assert version in line
        assert watched.loads == []


def test_a_rollback_does_not_wait_for_a_bundle_that_is_being_loaded(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(*args) -> ServedBundle:
        loading.set()
        assert go_on.wait(20)
        return load_bundle(*args)

    go_on.set()
    first = bundles.put(built_bundle, path)
    with watching(path, load=load) as watched:
        second = bundles.put(second_bundle, path)
        watched.wait_swaps(1)
        go_on.clear()
        loading.clear()
        third = bundles.put(built_bundle, path, bundles.renamed("third"))
        assert loading.wait(20)
        assert watched.watcher.rollback().after == first
        assert watched.version == first
        go_on.set()
        watched.wait_for(third)
        watched.wait_swaps(3)
        assert [(swap.before, swap.after) for swap in watched.swaps.newest()] == [
            (first, third), (second, first), (first, second),
        ]  # fmt: skip


def test_stopping_while_a_bundle_is_loaded_closes_it(built_bundle: Path, second_bundle: Path, path: Path) -> None:
    loading, go_on = threading.Event(), threading.Event()
    made: list[ServedBundle] = []

    def load(*args) -> ServedBundle:
        loading.set()
        assert go_on.wait(20)
        made.append(load_bundle(*args))
        return made[0]

    bundles.put(built_bundle, path)
    with watching(path, load=load) as watched:
        bundles.put(second_bundle, path)
        assert loading.wait(20)
        assert not watched.watcher.stop(0.01)
        assert watched.slot.close(10)
        go_on.set()
        assert watched.watcher.stop(20)
        assert watched.slot.wait_retired(10)
        with pytest.raises(RankerClosed):
            bundles.scores(made[0])
        assert watched.outcomes() == []


def test_the_log_says_that_the_features_of_a_request_changed(
    built_bundle: Path, second_bundle: Path, path: Path
) -> None:
    def load(*args) -> ServedBundle:
        loaded = load_bundle(*args)
        loaded.ranker.item_inputs = tuple(i for i in loaded.ranker.item_inputs if i.name != "affinity")
        loaded.ranker.outputs = ("watch", *loaded.ranker.outputs)
        return loaded

    bundles.put(built_bundle, path)
    with watching(path, load=load) as watched:
        bundles.put(second_bundle, path)
        watched.wait_swaps(1)
        assert "the features of a request changed: affinity; the tasks changed: watch" in watched.lines.getvalue()


def test_what_the_cache_of_a_retired_bundle_counted_is_not_lost(built_bundle: Path, path: Path) -> None:
    bundles.put(built_bundle, path)
    with watching(path) as watched:
        before = watched.metric("ugsep_user_cache_hits_total")
        for _ in range(51):
            watched.slot.current().ranker.score(*bundles.request(0))
        for turn in range(2):  # nothing reads the metrics until the first bundle is gone
            watched.wait_for(bundles.put(built_bundle, path, bundles.renamed(f"turn {turn}")))
            watched.wait_swaps(turn + 1)
        assert watched.slot.wait_retired(10)
        assert watched.metric("ugsep_user_cache_hits_total") - before >= 50
