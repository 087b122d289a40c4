"""``ugsep schemes``: the scores of a scheme are those of its graphs, and bad input is one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from engines.build.pipeline import build
from engines.build.sources import Sources
from engines.cli.main import main
from quant.calibration.calibrate import calibrate
from quant.requests.readers import read_requests
from quant.requests.spec import Request, request_spec
from quant.schemes.numerics import sqnr_db
from quant.schemes.schemes import Absmax
from quant.weights import quantize_side
from tests import tiny


def _run(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["schemes", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def tables(built_bundle: Path, tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Any:
    page = tmp_path_factory.mktemp("schemes") / "page.md"
    page.write_text("# Before\n\n<!-- begin schemes tiny -->\nold\n<!-- end schemes tiny -->\n\nAfter.\n")
    data = ("--calibration", tiny_sources.calibration[0], "--requests", tiny_sources.requests[0])
    shown = _run(built_bundle, *data, "--markdown", page, "--json")
    return json.loads(shown.stdout), page.read_text()


def test_every_scheme_has_its_row(tables: Any) -> None:
    (table,), _ = tables
    assert [r["scheme"] for r in table["rows"]] == ["fp32", "absmax", "mse", "gptq", "awq"]
    fp32, *rows = table["rows"]
    assert table["chosen"] == "mse"
    for row in rows:
        assert row["weight_bytes"] < 0.6 * fp32["weight_bytes"]  # tables stay float and are as large as the rest
        assert row["weights_db"] >= row["served_db"] - 3.0  # int8 activations only add noise, within chance
        assert 25 < row["weights_db"] < 90
        assert row["user_ms"] > 0
        assert row["item_ms"] > 0
        assert row["weights_auc_change"] is not None


def test_a_row_is_what_the_graphs_of_its_scheme_score(
    tables: Any, built_bundle: Path, tiny_sources: Sources, tmp_path: Path
) -> None:
    onnx = built_bundle / "onnx"
    requests = list(read_requests(tiny_sources.requests, request_spec(onnx / "user.onnx", onnx / "item.onnx")))
    for side in ("user", "item"):
        quantize_side(onnx / f"{side}.onnx", tmp_path, scheme=Absmax())

    def scores(user: Path, item: Path) -> dict[str, list[np.ndarray]]:
        first, second = (ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (user, item))
        found: dict[str, list[np.ndarray]] = {o.name: [] for o in second.get_outputs()}
        for r in requests:
            state = dict(
                zip([o.name for o in first.get_outputs()], first.run(None, _needed(first, r, {})), strict=True)
            )
            for name, value in zip(found, second.run(None, _needed(second, r, state)), strict=True):
                found[name].append(value)
        return found

    before = scores(onnx / "user.onnx", onnx / "item.onnx")
    after = scores(tmp_path / "user.w8a32.onnx", tmp_path / "item.w8a32.onnx")
    expected = min(sqnr_db(np.concatenate(before[t]), np.concatenate(after[t])) for t in before)
    (table,), _ = tables
    # ONNX Runtime may fuse int8 GEMMs with int8 activations: close to the noise of the weights, but not equal
    assert table["rows"][1]["weights_db"] == pytest.approx(expected, abs=3.0)


def _needed(session: Any, request: Request, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    index = {"user_index": np.zeros(request.candidates, np.int64)}
    given = {**request.user, **request.items, **state, **index}
    return {i.name: given[i.name] for i in session.get_inputs()}


def test_the_page_keeps_the_text_around_the_table(tables: Any) -> None:
    _, page = tables
    assert page.startswith("# Before\n")
    assert page.endswith("\nAfter.\n")
    assert "old" not in page
    assert page.count("\n| ") == 1 + 5
    assert "**mse** (recipe)" in page
    assert "| fp32 | exact | exact |" in page


def test_a_build_shows_the_comparison_and_the_policy_in_its_report(tiny_sources: Sources, tmp_path: Path) -> None:
    rule = {"glob": "item:*.down.weight*", "precision": "fp32", "reason": "slow where measured"}
    quantization = dataclasses.replace(
        tiny.RECIPE.quantization, compare=("absmax", "gptq"), policy={"weights": [rule]}
    )
    recipe = dataclasses.replace(tiny.RECIPE, quantization=quantization)
    found = build("tiny", recipe, tiny_sources, tmp_path / "out").report
    assert [r["scheme"] for r in found["schemes"]["rows"]] == ["fp32", "absmax", "gptq"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Quantization schemes side by side" in page
    assert "slow where measured" in page
    # the Gram matrices for gptq are not shipped
    assert "gram" not in (tmp_path / "out" / "calibration.safetensors").read_bytes()[:4096].decode("latin1")


def test_random_requests_on_request_only(built_bundle: Path, tmp_path: Path) -> None:
    shown = _run(built_bundle, "--synthetic", "--schemes", "absmax")
    assert "absmax" in shown.stdout
    assert "or --synthetic" in _run(built_bundle, status=2).stderr
    assert "did you mean 'gptq'" in _run(built_bundle, "--synthetic", "--schemes", "absmax,gtpq", status=2).stderr
    assert "manifest" in _run(tmp_path, "--synthetic", status=2).stderr


def test_grams_are_left_out_on_request(built_bundle: Path, tiny_sources: Sources) -> None:
    from quant.calibration.statistics import without_grams

    onnx = built_bundle / "onnx"
    pair = (onnx / "user.onnx", onnx / "item.onnx")
    found = calibrate(*pair, read_requests(tiny_sources.calibration, request_spec(*pair)), gram=True)
    bare = without_grams(found)
    assert all(t.gram is not None for t in found.user.tensors.values())
    assert all(t.gram is None for side in (bare.user, bare.item) for t in side.tensors.values())
    assert bare.samples == found.samples


def test_a_policy_and_changed_settings(built_bundle: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy: {default: fp32, weights: [{glob: 'user:*', precision: int8, reason: memory}]}")
    change = ("--set", "serving.precision.user=w8a32")
    shown = _run(built_bundle, "--synthetic", "--schemes", "absmax", "--policy", policy, *change, "--json")
    (table,) = json.loads(shown.stdout)
    assert table["precision"] == {"user": "onnxruntime w8a32", "item": "onnxruntime w8a32"}
    assert table["synthetic"] is True
    (whole,) = json.loads(_run(built_bundle, "--synthetic", "--schemes", "absmax", "--json").stdout)
    assert whole["rows"][1]["weight_bytes"] < table["rows"][1]["weight_bytes"] < table["rows"][0]["weight_bytes"]
    policy.write_text("weights: [{glob: 'usr:*', precision: int8}]")
    assert "matches no weight" in _run(built_bundle, "--synthetic", "--policy", policy, status=2).stderr
