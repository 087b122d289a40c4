"""Loading a bundle for serving: what it checks, and what it survives."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engines.backends.contract import LazyRunner
from engines.backends.onnxruntime import variants
from engines.backends.onnxruntime.variants import VariantRunner
from engines.bundle.manifest import engine_for, read_manifest
from engines.serve.settings import ServeSettings
from engines.serve.swap import loading
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.snapshot import manifest_version
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.swap import bundles


def settings(path: Path, **changes: object) -> ServeSettings:
    return dataclasses.replace(ServeSettings(path, name="m"), **changes)  # type: ignore[arg-type]


def test_a_loaded_bundle_needs_its_directory_no_more(second_bundle: Path, path: Path) -> None:
    want = bundles.expected(second_bundle)
    bundles.put(second_bundle, path)
    before = time.time()
    served = load_bundle(settings(path))
    assert (served.name, served.version) == ("m", manifest_version(second_bundle))
    assert served.report["model"] == "tiny"
    assert before <= served.loaded_at <= time.time()
    shutil.rmtree(path)
    with served.ranker as ranker:
        np.testing.assert_array_equal(bundles.scores(served), want)
        for candidates in (1, 2, 9, 40):  # every variant, none of which may be read from the disk now
            user, items = tiny.user_and_items(candidates)
            alone = ranker.score(user, items)["like"]
            users = {name: np.repeat(value, 3, axis=0) for name, value in user.items()}
            both = ranker.score_users(users, items, np.arange(candidates) % 3)["like"]
            np.testing.assert_allclose(both, alone, rtol=0, atol=1e-4)


def test_every_variant_is_in_memory_after_loading(second_bundle: Path) -> None:
    with load_bundle(settings(second_bundle)).ranker as ranker:
        item = ranker.item_runner
        assert isinstance(item, VariantRunner)
        assert isinstance(item, LazyRunner)
        assert {variants.ANY, variants.ONE_USER} <= item.loaded
        files = engine_for(read_manifest(second_bundle), "item").built.files
        assert len(item.loaded) == sum(name.endswith(".onnx") for name in files)


def test_a_link_is_followed_once(built_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(built_bundle)
    with load_bundle(settings(link)).ranker:
        pass
    assert load_bundle(settings(link)).root == built_bundle.resolve()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(UgsepError, match="loop"):
        load_bundle(settings(loop))
    gone = tmp_path / "gone"
    gone.symlink_to(tmp_path / "removed")
    with pytest.raises(UgsepError, match=r"removed: no manifest\.json, so not a bundle"):
        load_bundle(settings(gone))


def change_the_expected_scores(bundle: Path) -> None:
    file = bundle / "fixtures.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if "expected" in name:
            tensors[name] = tensors[name] + np.float32(0.5)
    save_file(tensors, file)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated engine": (lambda b: bundles.cut(bundles.engine_file(b, "item")), "bytes but the manifest says"),
    "changed byte": (lambda b: bundles.flip_a_byte(bundles.engine_file(b, "user")), "sha256"),
    "missing engine": (lambda b: bundles.engine_file(b, "item").unlink(), "missing"),
    "missing fixtures": (lambda b: (b / "fixtures.safetensors").unlink(), "missing"),
    "unlisted fixtures": (bundles.hashed_again(lambda b: (b / "fixtures.json").unlink()), "no fixtures.json"),
    "changed fixtures": (lambda b: bundles.flip_a_byte(b / "fixtures.safetensors"), "sha256"),
    "missing report": (lambda b: (b / "report.json").unlink(), "missing"),
    "changed recipe": (lambda b: bundles.flip_a_byte(b / "recipe.yaml"), "sha256"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "no manifest.json"),
    "broken manifest": (lambda b: bundles.cut(b / "manifest.json"), "was changed after it was written"),
    "manifest is no object": (lambda b: (b / "manifest.json").write_text("[]"), "not a JSON object"),
    "garbage engine, hashed": (
        bundles.hashed_again(lambda b: bundles.engine_file(b, "item").write_bytes(b"x" * 1000)),
        "cannot load it",
    ),
    "wrong fixtures, hashed": (bundles.hashed_again(change_the_expected_scores), r"fixture .*difference"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_bundle_is_refused_with_one_line(bundle: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(bundle)
    with pytest.raises(UgsepError, match=message) as refused:
        load_bundle(settings(bundle))
    assert "\n" not in str(refused.value)


def test_engines_of_another_model_with_right_hashes_fail_the_fixtures(bundle: Path, second_bundle: Path) -> None:
    shutil.rmtree(bundle / "engines")
    bundles.hashed_again(lambda b: shutil.copytree(second_bundle / "engines", b / "engines"))(bundle)
    with pytest.raises(UgsepError, match=r"fixture '.*', task 'like': \|difference\|"):
        load_bundle(settings(bundle))


def test_a_refused_bundle_leaves_nothing_loaded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.serve.ranker import Ranker

    closed: list[Ranker] = []
    close = Ranker.close
    monkeypatch.setattr(Ranker, "close", lambda ranker, *args: (closed.append(ranker), close(ranker, *args))[1])
    bundles.hashed_again(change_the_expected_scores)(bundle)
    with pytest.raises(UgsepError, match="fixture"):
        load_bundle(settings(bundle))
    assert len(closed) == 1


@pytest.mark.parametrize("moment", ["read_manifest", "verify_files", "read_report", "read_fixtures"])
def test_a_directory_replaced_while_it_is_loaded_is_loaded_again_whole(
    built_bundle: Path, second_bundle: Path, path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    step = getattr(loading, moment)
    published: list[str] = []

    def replaced_first(*args: object) -> object:
        if not published:
            published.append(bundles.put(second_bundle, path))
        return step(*args)

    monkeypatch.setattr(loading, moment, replaced_first)
    bundles.put(built_bundle, path)
    served = load_bundle(settings(path))
    with served.ranker:
        assert [served.version] == published
        np.testing.assert_array_equal(bundles.scores(served), bundles.expected(second_bundle))


def test_a_directory_that_keeps_changing_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = loading.verify_files

    def touched_first(*args: object) -> None:
        (bundle / "report.html").touch()
        verify(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "verify_files", touched_first)
    with pytest.raises(UgsepError, match="changed while it was read, 5 times; retry when the copy is finished"):
        load_bundle(settings(bundle))


def test_the_states_of_the_same_user_engine_are_taken_over(built_bundle: Path, path: Path) -> None:
    bundles.put(built_bundle, path, bundles.renamed("b"))
    lines: list[str] = []
    with load_bundle(settings(built_bundle)).ranker as ranker:
        old = dataclasses.replace(load_bundle(settings(built_bundle)), ranker=ranker)
        bundles.scores(old)
        with load_bundle(settings(path), old, lines.append).ranker as new:
            before = new.cache_info()
            new.score(*bundles.request(0))
            assert new.cache_info().hits == before.hits + 1
    assert lines == [f"took over the states of {bundles.USERS} users: the user engine is the same"]


def test_the_users_of_another_user_engine_are_computed_again(built_bundle: Path, second_bundle: Path) -> None:
    lines: list[str] = []
    old = load_bundle(settings(built_bundle))
    bundles.scores(old)
    new = load_bundle(settings(second_bundle), old, lines.append)
    with old.ranker, new.ranker:
        before = new.ranker.cache_info()
        assert before.users == bundles.USERS
        # Neither the fixtures nor the warming are callers' requests.
        assert (before.hits, before.misses, before.evictions) == (0, 0, 0)
        np.testing.assert_array_equal(bundles.scores(new), bundles.expected(second_bundle))
        assert new.ranker.cache_info().misses == before.misses
        assert [user["user_id"] for user in old.ranker.recent_users(1)] == [
            user["user_id"] for user in new.ranker.recent_users(1)
        ]
    (line,) = lines
    assert line.startswith(f"warmed {bundles.USERS} of {bundles.USERS} users in")


def test_a_bundle_of_another_name_is_served_under_the_name_that_callers_know(built_bundle: Path) -> None:
    lines: list[str] = []
    first = load_bundle(ServeSettings(built_bundle))
    assert first.name == "tiny"
    second = load_bundle(ServeSettings(built_bundle), dataclasses.replace(first, name="films"), lines.append)
    with first.ranker, second.ranker:
        assert second.name == "films"
    assert lines[1:] == ["model 'tiny' is served under the name 'films'"]


def test_warming_is_bounded(built_bundle: Path, second_bundle: Path) -> None:
    lines: list[str] = []
    old = load_bundle(settings(built_bundle))
    bundles.scores(old)
    new = load_bundle(settings(second_bundle), old, lines.append, warm_seconds=0.0)
    with old.ranker, new.ranker:
        assert new.ranker.cache_info().users == 0
    assert lines[0].startswith(f"warmed 0 of {bundles.USERS} users")
