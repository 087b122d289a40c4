"""Requests with one user on ONNX Runtime: the faster variant is used, both agree, weights are stored once."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engines import Ranker
from engines.backends.build import build_engine
from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import LazyRunner
from engines.backends.engine_spec import BuildSpec
from engines.backends.onnxruntime import autotune, variants
from engines.backends.onnxruntime import backend as ort_backend
from engines.build.pipeline import build
from engines.build.sources import Sources
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import engine_for
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX
from tests import tiny
from tests.export.lowering_graphs import item, reference

ONE_USER_FILE = variants.variant_file("item", variants.ONE_USER)
ALWAYS, NEVER = -1e9, 1.0  # the smallest gain that justifies the second variant


def silent(_: str) -> None:
    return None


def build_item(folder: Path, precision: str) -> tuple[Path, BuiltEngine]:
    source = item(folder / "onnx" / "item.onnx", np.random.default_rng(3), precision != "fp32")
    (folder / "out").mkdir()
    return source, build_engine(ort_backend, BuildSpec("item", source, precision), folder / "out", silent)


def requests(candidates: int, users: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((users, 16)).astype(np.float32)
    return {
        "ids": rng.integers(0, 50, candidates),
        "state": state,
        USER_INDEX: rng.integers(0, users, candidates),
    }


@pytest.mark.parametrize("precision", ["fp32", "w8a32"])
def test_both_variants_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    bound = 1e-5  # reordered sums of 16 products
    monkeypatch.setattr(autotune, "LEAST_GAIN", ALWAYS)
    source, built = build_item(tmp_path, precision)
    assert ONE_USER_FILE in built.files
    assert {s.name: s.shape for s in built.inputs}[USER_INDEX] == ("user_rows",)
    runner = ort_backend.load(tmp_path / "out", built)
    assert isinstance(runner, variants.VariantRunner)
    for candidates in (1, 2, 257):
        feeds = requests(candidates, 1, candidates)
        want = reference(source, feeds)["click"]
        got = runner.infer({**feeds, USER_INDEX: np.zeros(1, np.int64)})["click"]
        assert np.abs(got - want).max() < bound
        assert np.ptp(want) > 0 or candidates == 1
    assert runner.loaded == {variants.ONE_USER}  # requests with one user never load the second copy of the weights
    for candidates, users in ((1, 3), (2, 3), (257, 3)):
        feeds = requests(candidates, users, candidates)
        feeds[USER_INDEX][0] = 2  # a single candidate of the last of several users must not be broadcast
        assert np.abs(runner.infer(feeds)["click"] - reference(source, feeds)["click"]).max() < bound
    assert runner.loaded == {variants.ONE_USER, variants.ANY}
    runner.close()
    for feeds in (requests(2, 3), {**requests(2, 1), USER_INDEX: np.zeros(1, np.int64)}):
        with pytest.raises(UgsepError, match="closed"):
            runner.infer(feeds)


def test_the_slower_variant_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", NEVER)
    _, built = build_item(tmp_path, "fp32")
    assert ONE_USER_FILE not in built.files
    assert not (tmp_path / "out" / ONE_USER_FILE).exists()
    assert {s.name: s.shape for s in built.inputs}[USER_INDEX] == ("candidates",)
    assert built.figures["one_user_broadcast_ms"] > 0
    assert built.figures["one_user_gather_ms"] > 0
    assert "gathered is used" in built.notes[0]


def test_the_choice_follows_the_medians() -> None:
    assert autotune.UserTimes(256, 9.0, 10.0).pays
    assert not autotune.UserTimes(256, 9.9, 10.0).pays  # within noise
    assert not autotune.UserTimes(256, 11.0, 10.0).pays


def test_variants_that_differ_fail_the_build() -> None:
    class Session:
        def __init__(self, value: float) -> None:
            self.value = value

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full(3, self.value, np.float32)]

    with pytest.raises(UgsepError, match="scores one user's request differently"):
        autotune.measure_user_variants(Session(0.0), Session(1.0), (), 3)
    with pytest.raises(UgsepError, match="scores one user's request differently"):
        autotune.measure_user_variants(Session(0.0), Session(np.nan), (), 3)


def test_bad_feeds_are_told_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", ALWAYS)
    _, built = build_item(tmp_path, "fp32")
    runner = ort_backend.load(tmp_path / "out", built)
    good = {**requests(4, 1), USER_INDEX: np.zeros(1, np.int64)}
    for wrong, message in (
        ({**good, "ids": np.full(4, 50)}, "check that ids lie within their vocabularies"),
        ({**good, USER_INDEX: np.array([3])}, "refused these inputs"),
        ({k: v for k, v in good.items() if k != "state"}, "'state' is missing"),
        ({**good, "state": np.zeros((1, 15), np.float32)}, "input 'state' is"),
        ({**good, "more": np.zeros(4)}, "unknown input 'more'"),
    ):
        with pytest.raises(UgsepError, match=message):
            runner.infer(wrong)
    runner.close()


def test_the_second_variant_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", ALWAYS)
    source, built = build_item(tmp_path, "fp32")
    runner = ort_backend.load(tmp_path / "out", built)
    assert isinstance(runner, variants.VariantRunner)
    loads: list[int] = []
    load = runner._load[variants.ANY]

    def counted():
        loads.append(1)
        return load()

    runner._load[variants.ANY] = counted
    feeds = requests(9, 3)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: runner.infer(feeds)["click"], range(12)))
    assert len(loads) == 1
    for scores in found:
        np.testing.assert_allclose(scores, reference(source, feeds)["click"], rtol=0, atol=1e-5)
    runner.close()


def test_a_replaced_bundle_is_not_mixed_with_the_loaded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", ALWAYS)
    _, built = build_item(tmp_path, "fp32")
    file = tmp_path / "out" / "item.onnx"
    for change in (lambda: file.write_bytes(file.read_bytes()), file.unlink):
        runner = ort_backend.load(tmp_path / "out", built)
        change()
        with pytest.raises(UgsepError, match=r"replaced since it was loaded.*; load the bundle again"):
            runner.infer(requests(4, 3))
        assert runner.infer({**requests(4, 1), USER_INDEX: np.zeros(1, np.int64)})["click"].shape == (4,)
        runner.close()


@pytest.mark.parametrize("gain", [ALWAYS, pytest.param(NEVER, marks=pytest.mark.slow)])
def test_a_bundle_with_either_variant(
    tiny_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", gain)
    out = tmp_path / "bundle"
    build("tiny", tiny.RECIPE, tiny_sources, out)
    manifest = Bundle.open(out).manifest
    built = engine_for(manifest, "item").built
    assert (ONE_USER_FILE in built.files) == (gain == ALWAYS)
    document = json.loads((out / "report.json").read_text())
    (told,) = [e for e in document["engines"] if e["side"] == "item"]
    assert told["figures"]["one_user_gather_ms"] == built.figures["one_user_gather_ms"]
    assert told["notes"] == list(built.notes) != []
    ranker = Ranker.from_bundle(out)
    assert ranker.broadcasts == (gain == ALWAYS)
    asked = [tiny.user_and_items(n, seed=n) for n in (1, 4, 30)]
    users = {k: np.concatenate([u[k] for u, _ in asked]) for k in asked[0][0]}
    items = {k: np.concatenate([i[k] for _, i in asked]) for k in asked[0][1]}
    together = ranker.score_users(users, items, np.repeat(np.arange(3), [1, 4, 30]))["like"]
    apart = np.concatenate([ranker.score(u, i)["like"] for u, i in asked])
    # Same int8 weights and FP32 GEMMs; the user engine rounds the activations of its row the same way in both calls.
    np.testing.assert_allclose(apart, together, rtol=0, atol=1e-4)
    assert np.ptp(apart) > 0.1
    ranker.close()
    if gain == ALWAYS:
        changed = out / engine_for(manifest, "item").directory / ONE_USER_FILE
        changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
        with pytest.raises(UgsepError, match=ONE_USER_FILE):
            Ranker.from_bundle(out)


def test_a_preloaded_engine_outlives_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", ALWAYS)
    source, built = build_item(tmp_path, "fp32")
    runner = ort_backend.load(tmp_path / "out", built)
    assert isinstance(runner, LazyRunner)
    runner.preload()
    runner.preload()
    shutil.rmtree(tmp_path / "out")
    feeds = requests(9, 3)
    np.testing.assert_allclose(runner.infer(feeds)["click"], reference(source, feeds)["click"], rtol=0, atol=1e-5)
    runner.close()
    with pytest.raises(UgsepError, match="closed"):
        runner.preload()


def test_preloading_a_replaced_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", ALWAYS)
    _, built = build_item(tmp_path, "fp32")
    runner = ort_backend.load(tmp_path / "out", built)
    assert isinstance(runner, LazyRunner)
    file = tmp_path / "out" / "item.onnx"
    file.write_bytes(file.read_bytes())
    with pytest.raises(UgsepError, match="replaced since it was loaded"):
        runner.preload()
