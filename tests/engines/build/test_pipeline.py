"""The build pipeline on a tiny model, and what happens if a step fails."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from engines.build.pipeline import build, rebuild_command
from engines.build.sources import Sources, content_key
from engines.bundle.manifest import read_manifest
from engines.cli.main import main
from export.activations import activation_ranges
from export.io import read_graph
from graphs.base.errors import GateFailed, UgsepError
from tests import tiny

ROOT = Path(__file__).parents[3]


def test_the_bundle_holds_what_the_contract_names(built_bundle: Path) -> None:
    for name in (
        "recipe.yaml", "report.json", "report.html", "manifest.json", "calibration.json", "calibration.safetensors",
        "fixtures.json", "fixtures.safetensors",
        "onnx/full.onnx", "onnx/user.onnx", "onnx/item.onnx", "onnx/user.w8a32.onnx", "onnx/item.w8a16.onnx",
    ):  # fmt: skip
        assert (built_bundle / name).is_file(), name
    manifest = json.loads((built_bundle / "manifest.json").read_text())
    on_disk = {p.relative_to(built_bundle).as_posix() for p in built_bundle.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}


def test_the_report_holds_the_contract_s_keys(built_bundle: Path) -> None:
    report = json.loads((built_bundle / "report.json").read_text())
    assert {"model", "backend", "precision", "passed", "parity", "latency", "weights", "targets"} <= set(report)
    for block in report["parity"].values():
        assert {"max_abs", "p999_abs", "sqnr_db", "kendall_tau", "top_k_overlap", "rows"} <= set(block)
    latency = report["latency"]
    assert {"full_fp32", "user", "item", "request", "candidates", "speedup", "limit", "fraction_of_limit"} <= set(
        latency
    )
    assert all(p in latency["request"] for p in ("p50", "p90", "p99"))
    assert report["passed"] is True
    assert report["parity"]["split"]["max_abs"] < 1e-5
    # Weights are quantized, so the error must not be zero: that would mean FP32 was compared with itself.
    assert report["parity"]["quant"]["max_abs"] > 0
    assert 0 < report["weights"]["quantized_bytes"] < 0.5 * report["weights"]["fp32_bytes"]


def test_the_report_and_the_manifest_hold_what_batching_gains(built_bundle: Path) -> None:
    report = json.loads((built_bundle / "report.json").read_text())
    timings = read_manifest(built_bundle).batching
    sizes = [(t.users, t.candidates) for t in timings]
    assert sizes == sorted(sizes)
    assert (2, 1) in sizes
    assert max(users * candidates for users, candidates in sizes) <= 64, "no more than the item engine takes"
    assert report["batching"] == [{**dataclasses.asdict(t), "speedup": t.speedup} for t in timings]


def test_the_report_page_needs_nothing_from_outside(built_bundle: Path) -> None:
    page = (built_bundle / "report.html").read_text()
    assert "<svg" in page
    assert "Several users in one item call" in page
    for outside in ("<script", "<link", "src=", "url(http", "@import"):
        assert outside not in page


def test_nothing_changed_means_nothing_built(built_bundle: Path, tiny_sources: Sources) -> None:
    before = (built_bundle / "manifest.json").stat().st_mtime_ns
    assert build("tiny", tiny.RECIPE, tiny_sources, built_bundle).unchanged
    assert (built_bundle / "manifest.json").stat().st_mtime_ns == before


def test_the_key_follows_contents_not_paths(tiny_sources: Sources, tmp_path: Path) -> None:
    assert tiny_sources.checkpoint is not None
    key = content_key("tiny", tiny.RECIPE, tiny_sources, "onnxruntime")
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_sources.checkpoint, moved)
    assert content_key("tiny", tiny.RECIPE, dataclasses.replace(tiny_sources, checkpoint=moved), "onnxruntime") == key
    weights = safetensors.numpy.load_file(moved / "model.safetensors")
    weights["heads.like.logit.bias"] = weights["heads.like.logit.bias"] + 1
    safetensors.numpy.save_file(weights, moved / "model.safetensors")
    other_rows = dataclasses.replace(tiny_sources, requests=tiny_sources.calibration)
    changed = {
        content_key("tiny", tiny.RECIPE, dataclasses.replace(tiny_sources, checkpoint=moved), "onnxruntime"),
        content_key("tiny", tiny.with_gates(tiny.RECIPE, sqnr_db=26.0), tiny_sources, "onnxruntime"),
        content_key("other", tiny.RECIPE, tiny_sources, "onnxruntime"),
        content_key("tiny", tiny.RECIPE, tiny_sources, "openvino"),
        content_key("tiny", tiny.RECIPE, other_rows, "onnxruntime"),
    }
    assert key not in changed
    assert len(changed) == 5


@pytest.mark.slow
def test_a_recipe_with_calibrated_scales(tiny_sources: Sources, tmp_path: Path) -> None:
    precision = {"user": "w8a8-dynamic", "item": "w8a8-static"}
    serving = dataclasses.replace(tiny.RECIPE.serving, precision=precision)
    # Random weights give logits of many units, and a probability changes by up to a quarter of a logit's error.
    recipe = tiny.with_gates(tiny.RECIPE, max_probability=0.05, same_experts_probability=0.05)
    build("tiny", dataclasses.replace(recipe, serving=serving), tiny_sources, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    item = next(engine.built for engine in manifest.engines if engine.built.side == "item")
    assert item.precision == "w8a8-static"
    assert not [note for note in item.notes if "no calibrated range" in note]
    source = tmp_path / "out" / "onnx" / "item.w8a32.onnx"
    ranges = activation_ranges(read_graph(source), source)
    assert ranges is not None
    assert {w.name for w in item.weights if w.status == "fused-int8"} == set(ranges)
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")])
    assert "w8a8-static" in shown.output


@pytest.mark.slow
def test_a_failed_gate_leaves_the_old_bundle_and_the_report(bundle: Path, tiny_sources: Sources) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(GateFailed, match=r"SQNR dB: .* >= 200 FAILED") as caught:
        build("tiny", tiny.with_gates(tiny.RECIPE, sqnr_db=200.0), tiny_sources, bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    failed = bundle.with_name("bundle.failed")
    assert json.loads((failed / "report.json").read_text())["passed"] is False
    worst = bundle.with_name("bundle.failed.worst.npz")
    with np.load(worst) as rows:
        assert len(rows["quantized_error"]) > 0
    said = str(caught.value)
    assert "\n" not in said
    assert str(worst) in said
    _, _, command = said.partition("reproduce: ugsep ")
    again = CliRunner().invoke(main, shlex.split(command))
    assert again.exit_code == 1, again.output
    assert "SQNR dB: " in again.stderr


@pytest.mark.slow
def test_a_killed_build_leaves_no_bundle(tiny_sources: Sources, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tiny_sources.checkpoint is not None
    code = (
        "import sys; from pathlib import Path; from tests import tiny; from engines.build.pipeline import build;"
        "from engines.build.sources import Sources;"
        f"s = Sources(Path({str(tiny_sources.checkpoint)!r}), (Path({str(tiny_sources.calibration[0])!r}),),"
        f" (Path({str(tiny_sources.requests[0])!r}),));"
        f"build('tiny', tiny.RECIPE, s, Path({str(out)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.building-*/onnx/*.onnx")) and time.monotonic() < deadline:
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert not build("tiny", tiny.RECIPE, tiny_sources, out).unchanged
    assert not list(tmp_path.glob(".out.building-*")), "what the killed build left is cleaned up"


def test_a_bundle_names_the_command_that_was_typed() -> None:
    assert rebuild_command("toy", "ugsep build toy.py:make --user a") == "ugsep build toy.py:make --user a"
    assert rebuild_command("toy") == "make engines MODEL=toy"
    # A manifest has printable text only: a line break in an argument would make the bundle unreadable.
    assert rebuild_command("toy", "ugsep build toy --set 'a=1\n2'") == "make engines MODEL=toy"


def test_a_checkpoint_of_another_model_is_refused(tiny_sources: Sources, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.RECIPE, model="rankmixer")
    with pytest.raises(UgsepError, match="holds a 'zenith', but the recipe is for 'rankmixer'"):
        build("tiny", recipe, tiny_sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_backend_is_refused_with_the_nearest_name(tiny_sources: Sources, tmp_path: Path) -> None:
    serving = dataclasses.replace(tiny.RECIPE.serving, backend="onnxruntme")
    with pytest.raises(UgsepError, match="did you mean 'onnxruntime'"):
        build("tiny", dataclasses.replace(tiny.RECIPE, serving=serving), tiny_sources, tmp_path / "out")
