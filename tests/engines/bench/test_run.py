"""The benchmark: scores are checked before times, losses are reported, and the page is self-contained."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.backends.contract import Runner
from engines.backends.onnxruntime import backend as ort_backend
from engines.bench import findings, page
from engines.bench.baselines.contract import BaselineSource, ModelWeights
from engines.bench.ceiling import Gemm, constant_gemms, gemms_alone
from engines.bench.contender import baseline_contenders, bundle_pairs, our_contender
from engines.bench.correctness import FLOORS_DB, compare
from engines.bench.costs import BITS, Costs
from engines.bench.memory import load_and_score_bytes
from engines.bench.peak import MachinePeak, measure_peak
from engines.bench.ratios import RatioPoint, measure_ratios, ratio_recipe
from engines.bench.result import BenchResult, document, random_request, run_bench
from engines.bench.run import Settings, measure
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import read_manifest
from engines.recipes.recipe import load_recipe
from graphs.base.errors import GateFailed, UgsepError

COSTS = Costs(user_flops=900, item_flops=100, user_weight_bytes=4000, item_weight_bytes=800)
QUICK = Settings(candidates=(1, 9), threads=(1,), rounds=2, memory=False)


def size(candidates: int, ours: float, baseline: float) -> findings.Size:
    return findings.Size(1, candidates, 2.0, ours, ours / 2, ours / 2, "ugsep", ours, ours / 2, "other", baseline)


@pytest.fixture(scope="module")
def result(built_bundle: Path, tiny_sources) -> BenchResult:
    baselines = (
        "pytorch",
        "onnxruntime",
        "onnxruntime-int8-lowered",
        "onnxruntime-int8-static",
        "openvino-fp32",
        "openvino-fp16",
        "openvino-int8",
    )
    return run_bench(
        built_bundle, baselines, QUICK, ModelWeights(tiny_sources.checkpoint), command="ugsep bench tiny"
    )


def test_everybody_is_timed_at_every_size_or_left_out_with_a_reason(result: BenchResult) -> None:
    timed = {(t.name, t.candidates) for t in result.measured.timings}
    standing = {s.name for s in result.measured.standings}
    assert {"pytorch", "onnxruntime", "onnxruntime-int8-lowered", "onnxruntime-int8-static"} <= standing
    assert timed == {(name, n) for name in standing for n in (1, 9)}
    for name in ("openvino-fp32", "openvino-fp16", "openvino-int8"):
        assert name in standing or result.measured.left_out[name]
    chosen = [s for s in result.measured.standings if s.chosen]
    assert len(chosen) == 1
    assert {t.variant for t in result.measured.timings if t.name == chosen[0].name} == {
        "cold", "cached", "user", "item",
    }  # fmt: skip
    assert all(0 < t.ms.p50 <= t.ms.p90 <= t.ms.p99 for t in result.measured.timings)


def test_scores_reach_their_floor_and_quantized_ones_are_not_exact(result: BenchResult) -> None:
    quality = {s.name: s.quality for s in result.measured.standings}
    assert all(q.holds for q in quality.values())
    # Reordered FP32 sums are close but not equal; an exact int8 baseline would be the FP32 graph under another name.
    assert 100 < quality["pytorch"].sqnr_db < 400
    assert 20 < quality["onnxruntime-int8-lowered"].sqnr_db < 60
    assert 20 < quality["onnxruntime-int8-static"].sqnr_db < 60


def test_rates_follow_from_times_and_costs(result: BenchResult) -> None:
    for t in result.measured.timings:
        seconds = t.ms.p50 / 1e3
        assert t.candidates_per_s == pytest.approx(t.candidates / seconds)
        assert t.gflops == pytest.approx(result.costs.flops(t.variant, t.candidates) / seconds / 1e9)
        assert t.weight_gb_s > 0


def test_costs_of_a_call() -> None:
    assert COSTS.flops("whole", 10) == 10_000
    assert COSTS.flops("cold", 10) == 900 + 1000
    assert COSTS.flops("cached", 10) == COSTS.flops("item", 10) == 1000
    assert COSTS.flops("user", 10) == 900
    assert COSTS.limit(10) == pytest.approx(10_000 / 1900)
    assert COSTS.weight_bytes("whole", {"user": 32, "item": 32}) == 4800
    assert COSTS.weight_bytes("cold", {"user": 8, "item": 32}) == 1800
    assert COSTS.weight_bytes("item", {"user": 8, "item": 16}) == 400
    assert set(BITS) == set(FLOORS_DB)


def test_a_baseline_with_wrong_scores_is_left_out_and_our_wrong_engine_fails(
    built_bundle: Path, tiny_sources, tmp_path: Path
) -> None:
    """Every logit head of the reference is changed, so every contender is wrong by the same amount."""
    other = tmp_path / "full.onnx"
    model = onnx.load(built_bundle / "onnx" / "full.onnx")
    for tensor in model.graph.initializer:
        if "logit.weight" in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(-3 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, other)
    recipe = load_recipe(str(built_bundle / "recipe.yaml"))
    source = BaselineSource(other, tmp_path, recipe, ModelWeights(tiny_sources.checkpoint))
    request = random_request(Bundle.open(built_bundle), 9)
    pair = bundle_pairs(built_bundle, read_manifest(built_bundle))[0][0]
    baselines = baseline_contenders(["onnxruntime", "pytorch"], source)
    fixed = MachinePeak(1, 100.0, "none", 20.0)
    found = measure(baselines, source, request, COSTS, QUICK, peak=lambda _: fixed)
    assert "scores differ from the bundle's (SQNR" in found.left_out["pytorch"]
    assert [s.name for s in found.standings] == ["onnxruntime"]
    with pytest.raises(GateFailed, match=r"SQNR .* dB against FP32 < 20 dB; find the tensor with 'ugsep bisect'"):
        measure([our_contender(pair)], source, request, COSTS, QUICK, peak=lambda _: fixed)
    # Random requests may be beyond what the scales of a static pair were calibrated on.
    static = dataclasses.replace(our_contender(pair), precision="w8a8-static")
    found = measure([*baselines, static], source, request, COSTS, QUICK, peak=lambda _: fixed)
    assert found.left_out[static.name].endswith("dB; random requests exceed its calibrated ranges")
    with pytest.raises(GateFailed, match=r"SQNR .* dB against FP32 < 20 dB"):
        measure([dataclasses.replace(static, chosen=True)], source, request, COSTS, QUICK, peak=lambda _: fixed)


@pytest.mark.slow
def test_pytorch_baselines_without_weights_are_left_out(built_bundle: Path) -> None:
    found = run_bench(built_bundle, ("pytorch",), dataclasses.replace(QUICK, candidates=(3,)))
    assert "pass --checkpoint DIR, or --random" in found.measured.left_out["pytorch"]
    # Without a baseline there is no speed-up; the page is still complete and the JSON valid.
    assert math.isnan(found.sizes[0].speedup)
    assert document(found)["sizes"][0]["speedup"] is None
    assert "<svg" in page.page(found)


def test_comparing_counts_missing_tasks_and_nan_as_wrong() -> None:
    reference = {"like": np.array([0.5, -1.0, 2.0], np.float32)}
    assert compare(reference, {"like": reference["like"] * 1.0001}, "bf16").holds
    assert not compare(reference, {"like": reference["like"] * 1.5}, "bf16").holds
    assert not compare(reference, {}, "bf16").holds
    assert not compare(reference, {"like": reference["like"][:2]}, "bf16").holds
    assert not compare(reference, {"like": np.array([0.5, np.nan, 2.0], np.float32)}, "bf16").holds


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([2.0, 2.0, 2.0], 1.0),  # faster everywhere: from the smallest size on
        ([0.5, 2.0, 2.0], 4.0),  # crosses 1 midway between 1 and 16 on logarithmic axes
        ([2.0, 0.5, 2.0], 64.0),  # only the last crossing counts
        ([2.0, 2.0, 0.5], None),
    ],
)
def test_break_even(ratios: list[float], expected: float | None) -> None:
    sizes = [size(n, 1.0, r) for n, r in zip((1, 16, 256), ratios, strict=True)]
    assert findings.break_even(sizes) == (None if expected is None else pytest.approx(expected))


def test_the_words_name_a_baseline_that_wins(result: BenchResult) -> None:
    sizes = [size(1, 4.0, 1.0), size(256, 10.0, 20.0)]
    words = " ".join(findings.sentences(dataclasses.replace(result.measured, ceilings=()), sizes))
    assert "A baseline wins at N = 1, 1 thread: other takes 1 ms, the bundle 4 ms (4.00 times as long)" in words
    assert "2.00 times as fast" in words
    assert "No baseline wins" not in words
    # 0.25 at N = 1 and 2 at N = 256: 1 is crossed at two thirds of the way, 256 ** (2 / 3) = 40.3.
    assert "The split pays off from about N = 40 (1 thread)" in words
    words = " ".join(findings.sentences(dataclasses.replace(result.measured, ceilings=()), sizes[1:]))
    assert "No baseline wins at any measured size" in words


def test_the_page_needs_nothing_from_outside_and_shows_everybody(result: BenchResult, tmp_path: Path) -> None:
    shown = dataclasses.replace(
        result,
        ratios=(
            RatioPoint(6, 12, 9, 1, 1.5, 3.0, 2.4, "openvino-fp32", 2.5, "ugsep onnxruntime fp32", 2.4),
            RatioPoint(12, 4, 9, 1, 3.9, 3.0, 1.0, "openvino-fp32", 2.5, "ugsep onnxruntime fp32", 1.0),
        ),
    )
    page.write_result(tmp_path / "out", shown)
    html = (tmp_path / "out" / "bench.html").read_text()
    assert html.count("<svg") == 4  # latency, speed-up, roofline, ratios
    for outside in ("<script", "<link", "src=", "url(http", "@import"):
        assert outside not in html
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    for standing in result.measured.standings:
        assert standing.name in html
    for name in result.measured.left_out:
        assert f"<td>{name}</td>" in html
    assert written["ratios"][1]["speedup"] == pytest.approx(3.0)
    assert {"machine", "settings", "measured", "sizes", "break_even", "sentences"} <= set(written)


def test_a_markdown_section_replaces_its_own_older_one_only(result: BenchResult, tmp_path: Path) -> None:
    file = tmp_path / "docs" / "benchmarks.md"
    page.write_markdown(file, result)
    page.write_markdown(file, dataclasses.replace(result, model="other"))
    page.write_markdown(file, dataclasses.replace(result, command="ugsep bench again"))
    text = file.read_text()
    assert text.startswith("# Benchmarks")
    assert text.count("## tiny") == 1
    assert text.count("## other") == 1
    assert "ugsep bench again" in text
    assert text.count("ugsep bench tiny") == 1  # in the section of the other model
    assert text.count("<!-- begin") == text.count("<!-- end") == 2


def test_a_slow_baseline_is_left_out_if_its_rounds_do_not_fit_the_budget(built_bundle: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(built_bundle / "recipe.yaml"))
    source = BaselineSource(built_bundle / "onnx" / "full.onnx", tmp_path, recipe)
    pair = bundle_pairs(built_bundle, read_manifest(built_bundle))[0][0]
    contenders = [*baseline_contenders(["onnxruntime"], source), our_contender(pair, chosen=True)]
    settings = dataclasses.replace(QUICK, candidates=(9,), budget_s=1e-9)
    fixed = MachinePeak(1, 100.0, "none", 20.0)
    found = measure(
        contenders, source, random_request(Bundle.open(built_bundle), 9), COSTS, settings, peak=lambda _: fixed
    )
    assert {t.name for t in found.timings} == {f"ugsep {pair.name}"}, "ours are always timed"
    assert found.left_out["onnxruntime at N = 9, threads = 1"] == "2 rounds take longer than 0 s"
    with pytest.raises(UgsepError, match="budget 0 s is out of range"):
        Settings(budget_s=0)


def test_every_engine_a_run_loads_is_closed(
    built_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Runner] = []
    closed: list[Runner] = []
    load = ort_backend.load

    def counted(*args: Any) -> Runner:
        runner = load(*args)
        close = runner.close
        monkeypatch.setattr(runner, "close", lambda: (closed.append(runner), close())[1])
        loaded.append(runner)
        if len(loaded) == 4:
            raise UgsepError("the second item engine does not load")
        return runner

    monkeypatch.setattr(ort_backend, "load", counted)
    source = BaselineSource(
        built_bundle / "onnx" / "full.onnx", tmp_path, load_recipe(str(built_bundle / "recipe.yaml"))
    )
    pair = bundle_pairs(built_bundle, read_manifest(built_bundle))[0][0]
    settings = dataclasses.replace(QUICK, candidates=(2,), threads=(1, 2))
    fixed = MachinePeak(1, 100.0, "none", 20.0)
    with pytest.raises(UgsepError, match="does not load"):
        measure([our_contender(pair)], source, random_request(Bundle.open(built_bundle), 2), COSTS, settings,
                peak=lambda _: fixed)  # fmt: skip
    assert len(loaded) == 4
    assert closed == [loaded[1], loaded[0], loaded[2]], "all but the one that was never handed out"


def test_every_pair_of_ours_stands_against_the_fastest_baseline(result: BenchResult) -> None:
    (at,) = findings.headline(result.sizes)
    found = findings.standoffs(result.measured, at)
    assert [o.ms for o in found] == sorted(o.ms for o in found)
    assert {o.name for o in found} == {s.name for s in result.measured.standings if s.ours}
    assert [o.role for o in found if "bundle" in o.role] != []
    for o in found:
        assert o.speedup == pytest.approx(at.baseline_ms / o.ms)
        assert f"| {o.name} | {o.role} |" in page.markdown_section(result)


def test_the_machine_s_peak_is_measured() -> None:
    peak = measure_peak(threads=1, size=96, rounds=2)
    assert peak.gemm_gflops > 0.1
    assert peak.copy_gb_s > 0.1
    assert peak.attainable(1e9) == peak.gemm_gflops
    assert peak.attainable(1e-6) == pytest.approx(1e-6 * peak.copy_gb_s)
    with pytest.raises(UgsepError, match="0 threads"):
        measure_peak(threads=0)


def test_the_ceiling_counts_every_constant_gemm(result: BenchResult, built_bundle: Path) -> None:
    gemms = constant_gemms(built_bundle / "onnx" / "item.onnx")
    # CONFIG of tests.tiny: 3 item tokens of width 32, two layers, SwiGLU of inner width 40: gate and up [32, 40] and
    # down [40, 32] per token and layer.
    assert gemms.count(Gemm(1, 32, 40)) >= 2 * 2 * 3
    assert gemms.count(Gemm(1, 40, 32)) >= 2 * 3
    run = gemms_alone(gemms, 1)
    assert run is not None
    assert len(run(5)()) == len(gemms)  # type: ignore[arg-type]  # a list of outputs
    assert gemms_alone([], 1) is None
    assert [(c.threads, c.candidates) for c in result.measured.ceilings] == [(1, 1), (1, 9)]
    assert all(c.share > 0 for c in result.measured.ceilings)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(built_bundle: Path, tiny_sources, tmp_path: Path) -> None:
    recipe = load_recipe(str(built_bundle / "recipe.yaml"))
    source = BaselineSource(
        built_bundle / "onnx" / "full.onnx", tmp_path, recipe, ModelWeights(tiny_sources.checkpoint)
    )
    ort, torch = baseline_contenders(["onnxruntime", "pytorch"], source)
    request = random_request(Bundle.open(built_bundle), 9)
    small, large = load_and_score_bytes(ort, request), load_and_score_bytes(torch, request)
    assert small is not None
    assert large is not None
    # PyTorch's libraries alone exceed 100 MB; had they been loaded before, the growth would be a few MB.
    assert 5e6 < small < large
    assert large > 1e8


@pytest.mark.slow
def test_the_split_is_timed_over_the_ratio(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, candidates=(9, 40))
    fixed = MachinePeak(1, 100.0, "none", 20.0)
    points = measure_ratios((), settings, tmp_path, fixed, ratios=((3, 4), (4, 3)), width=28)
    assert [(p.user_tokens, p.item_tokens, p.candidates) for p in points] == [(3, 4, 40), (4, 3, 40)]
    assert 1 < points[0].limit < points[1].limit
    assert all(p.baseline == "onnxruntime-lowered" and p.split_ms > 0 for p in points)


def test_every_ratio_is_a_model(built_bundle: Path) -> None:
    from engines.bench.ratios import RATIOS
    from engines.build.sources import random_config

    shares = []
    for user, item in RATIOS:
        config = random_config(ratio_recipe(user, item, 256), None)
        assert config.user_tokens + config.item_tokens in (16, 18)
        shares.append(user / item)
    assert shares == [0.5, 1.0, 2.0, 3.0, 5.0]
