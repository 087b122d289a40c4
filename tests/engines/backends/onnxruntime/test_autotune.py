"""Variants of int8 GEMMs for few and for many rows: which are shipped, which run, and that they agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.backends.build import build_engine
from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Runner
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.onnxruntime import autotune
from engines.backends.onnxruntime import backend as ort_backend
from engines.backends.onnxruntime import plan as ort_plan
from engines.backends.onnxruntime.autotune import RowTimes, UserTimes, measure_row_variants
from engines.backends.onnxruntime.variants import ANY, FEW_ROWS, ONE_USER, VariantRunner, cut_profiles, variant_file
from export.activations import ActivationRange, activations_text
from export.io import stamp
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX
from tests.export.lowering_graphs import item, reference

FEW_FILE = variant_file("item", FEW_ROWS)
#: 16 activations are rounded to steps of 1/254 of the row's maximum, weights are about 1/4, and the slope of the
#: sigmoid is at most 1/4: the error is at most 16 * 3/254 * 1/4 * 1/4.
BOUND = 0.015


def times(up_to: int) -> RowTimes:
    ladder = (1, 2, 4, 8, 16)
    return RowTimes("matmul-nbits", "integer-rows", {n: (1.0, 2.0) if n <= up_to else (2.0, 1.0) for n in ladder})


def build_item(
    folder: Path, monkeypatch: pytest.MonkeyPatch, up_to: int, broadcasts: bool
) -> tuple[Path, BuiltEngine]:
    """Build as if few rows were faster up to ``up_to`` of the usual 16, and broadcasting faster or not."""
    monkeypatch.setattr(ort_plan, "measure_row_variants", lambda *_: times(up_to))
    monkeypatch.setattr(UserTimes, "pays", broadcasts)
    source = item(folder / "onnx" / "item.onnx", np.random.default_rng(3), True)
    (folder / "out").mkdir()
    spec = BuildSpec("item", source, "w8a8-dynamic", (Profile(Rows(1, 1, 4), Rows(1, 16, 64)),))
    return source, build_engine(ort_backend, spec, folder / "out", lambda _: None)


def requests(candidates: int, users: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(candidates)
    state = rng.standard_normal((users, 16)).astype(np.float32)
    return {"ids": rng.integers(0, 50, candidates), "state": state, USER_INDEX: np.arange(candidates) % users}


def operators(folder: Path, name: str) -> set[str]:
    return {node.op_type for node in onnx.load(folder / name, load_external_data=False).graph.node}


def errs(source: Path, runner: Runner, feeds: dict[str, np.ndarray], one_row: bool) -> float:
    asked = {**feeds, USER_INDEX: np.zeros(1, np.int64)} if one_row else feeds
    return float(np.abs(runner.infer(asked)["click"] - reference(source, feeds)["click"]).max())


def test_few_up_to_is_where_the_first_gain_ends() -> None:
    assert [times(n).few_up_to for n in (0, 1, 4, 16)] == [0, 1, 4, 16]
    assert RowTimes("a", "b", {1: (1.0, 1.01), 2: (1.0, 2.0)}).few_up_to == 0, "within noise"
    assert RowTimes("a", "b", {1: (1.0, 2.0), 2: (2.0, 1.0), 4: (1.0, 2.0)}).few_up_to == 1
    assert str(times(4)).endswith("matmul-nbits is used up to 4 rows")
    assert times(0).figures()["integer-rows_16_rows_ms"] == 1.0


@pytest.mark.parametrize("broadcasts", [True, False])
def test_each_request_runs_on_the_variant_for_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broadcasts: bool
) -> None:
    source, built = build_item(tmp_path, monkeypatch, 4, broadcasts)
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted(built.files)
    assert FEW_FILE in built.files
    assert "MatMulNBits" in operators(out, FEW_FILE)
    assert "MatMulIntegerToFloat" in operators(out, "item.onnx")
    assert [p.candidates for p in built.profiles] == [Rows(1, 1, 4), Rows(5, 16, 64)]
    assert [p.users.max for p in built.profiles] == [4, 4]
    runner = ort_backend.load(out, built)
    assert isinstance(runner, VariantRunner)
    first = ONE_USER if broadcasts else ANY
    assert errs(source, runner, requests(5, 1), broadcasts) < BOUND
    assert runner.loaded == {first}
    assert errs(source, runner, requests(4, 1), broadcasts) < BOUND
    assert runner.loaded == {first, FEW_ROWS}
    assert errs(source, runner, requests(3, 3), False) < BOUND
    assert runner.loaded == {first, FEW_ROWS, ANY}
    for wrong in ({}, {"ids": np.int64(3)}, {**requests(2, 1), "state": np.zeros((1, 15), np.float32)}):
        with pytest.raises(UgsepError):
            runner.infer(wrong)
    runner.close()
    for rows in (2, 9):
        with pytest.raises(UgsepError, match="closed"):
            runner.infer(requests(rows, 1))


@pytest.mark.parametrize(("up_to", "gemm"), [(0, "MatMulIntegerToFloat"), (16, "MatMulNBits")])
def test_one_form_is_shipped_where_the_other_never_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up_to: int, gemm: str
) -> None:
    source, built = build_item(tmp_path, monkeypatch, up_to, False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(built.files)
    assert FEW_FILE not in built.files
    assert {w.name: w.detail for w in built.weights}["mix.weight"].endswith(gemm)
    assert [p.candidates for p in built.profiles] == [Rows(1, 16, 64)]
    runner = ort_backend.load(tmp_path / "out", built)
    assert not isinstance(runner, VariantRunner)
    assert errs(source, runner, requests(7, 2), False) < BOUND


def test_profiles_keep_what_lies_beyond_the_few_rows() -> None:
    buckets = (
        Profile(candidates=Rows(1, 1, 2)),
        Profile(candidates=Rows(3, 6, 9)),
        Profile(candidates=Rows(10, 20, 30)),
    )
    cut = cut_profiles("item", buckets, 8)
    assert [p.candidates for p in cut] == [Rows(1, 1, 8), Rows(9, 9, 9), Rows(10, 20, 30)]
    assert [p.users for p in cut_profiles("user", (Profile(Rows(1, 8, 16)),), 2)] == [Rows(1, 1, 2), Rows(3, 8, 16)]


def test_an_engine_with_a_form_for_few_rows_takes_as_many_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, built = build_item(tmp_path, monkeypatch, 4, True)
    assert [p.candidates.max for p in built.profiles] == [4, 64]
    assert built.max_candidates == 64  # ugsep bench used the first profile and rejected N = 5


class Fixed:
    """A session with a constant output."""

    def __init__(self, value: float | np.ndarray) -> None:
        self.value, self.asked = np.full(3, value, np.float32) if isinstance(value, float) else value, 0

    def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.asked += 1
        return [np.asarray(self.value)]


def test_measuring_ends_where_the_form_for_few_rows_falls_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(1.0, 2.0), (1.0, 2.0), (2.0, 1.0), (1.0, 2.0)])
    monkeypatch.setattr(autotune, "_times", lambda *_: next(times))
    found = measure_row_variants(("a", Fixed(1.0)), ("b", Fixed(1.0)), (), "candidates", 12)
    assert list(found.ms) == [1, 2, 4]
    assert found.few_up_to == 2
    monkeypatch.setattr(autotune, "_times", lambda *_: (1.0, 2.0))
    assert list(measure_row_variants(("a", Fixed(1.0)), ("b", Fixed(1.0)), (), "users", 12).ms) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize("other", [1.0, np.nan])
def test_forms_that_differ_fail_the_build(other: float) -> None:
    with pytest.raises(UgsepError, match="differ between a and b"):
        measure_row_variants(("a", Fixed(other)), ("b", Fixed(0.0)), (), "candidates", 4)


@pytest.mark.parametrize("other", [True, False])
def test_forms_agree_in_the_flags_of_their_state(other: bool) -> None:
    """Which positions of a history are there: booleans have no difference."""
    one, another = Fixed(np.array([[True, False]])), Fixed(np.array([[True, other]]))
    if other:
        with pytest.raises(UgsepError, match="differ between a and b"):
            measure_row_variants(("a", one), ("b", another), (), "candidates", 1)
    else:
        assert measure_row_variants(("a", one), ("b", another), (), "candidates", 1).ms.keys() == {1}


def test_variants_with_calibrated_scales_need_not_agree_on_random_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random rows saturate calibrated scales, so that two right variants differ."""
    assert measure_row_variants(("a", Fixed(1.0)), ("b", Fixed(0.0)), (), "candidates", 1, None).ms.keys() == {1}
    asked: list[object] = []
    monkeypatch.setattr(ort_plan, "measure_row_variants", lambda *given: (asked.append(given[-1]), times(0))[1])
    source = item(tmp_path / "onnx" / "item.onnx", np.random.default_rng(3), True)
    model = onnx.load(source, load_external_data=False)
    stamp(model, activations=activations_text({"mix.weight": ActivationRange(0.01, 128)}))
    onnx.save(model, source)
    for precision in ("w8a8-static", "w8a8-dynamic"):
        (tmp_path / precision).mkdir()
        build_engine(ort_backend, BuildSpec("item", source, precision), tmp_path / precision, lambda _: None)
    assert asked == [None, autotune.OTHER_SCALES]
