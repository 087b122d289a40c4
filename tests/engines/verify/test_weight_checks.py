"""The gate on int8 weights that a runtime converted to float, and where their status is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.backends.built_engine import BuiltEngine, EngineWeight, WeightStatus
from engines.bundle.weight_statuses import engine_statuses
from engines.cli.quant.main import main
from engines.verify.weight_checks import int8_checks


def _engine(precision: str, **statuses: WeightStatus) -> BuiltEngine:
    weights = tuple(EngineWeight(name, status, "MatMul") for name, status in statuses.items())
    return BuiltEngine("tensorrt", "item", precision, (), 0, (), (), weights=weights)


@pytest.mark.parametrize("precision", ["w8a16", "w8a8-dynamic", "w8a8-static"])
def test_every_weight_that_became_float_is_named(precision: str) -> None:
    lost = _engine(precision, a="fused-int8", b="folded-to-float", c="missing", d="float", e="gathered-int8")
    (check,) = int8_checks([lost])
    assert not check.passed
    assert check.value == 2
    assert "b (folded-to-float), c (missing)" in check.name
    (kept,) = int8_checks([_engine(precision, a="fused-int8", d="float")])
    assert kept.passed


def test_precisions_that_promise_float_products_are_not_judged() -> None:
    assert not int8_checks([_engine("w8a32", a="folded-to-float"), _engine("fp32", a="float")])


def test_quant_inspect_shows_what_the_engines_of_a_bundle_did(bundle: Path) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert shown.exit_code == 0, shown.output
    assert "fused-int8" in shown.output
    assert "folded-to-float" in shown.output
    rows = json.loads(CliRunner().invoke(main, ["inspect", str(bundle), "--json"]).stdout)
    statuses = {status for row in rows for status in row["statuses"].values()}
    assert {"fused-int8", "folded-to-float"} <= statuses
    assert {f.side for f in engine_statuses(bundle)} == {"user", "item"}


def test_a_broken_manifest_is_one_line(bundle: Path) -> None:
    for text in ("{", "{}", '{"engines": [{}]}', '{"engines": 3}'):
        (bundle / "manifest.json").write_text(text)
        shown = CliRunner().invoke(main, ["inspect", str(bundle)])
        assert shown.exit_code == 2
        assert "manifest.json: " in shown.output
        assert shown.output.count("\n") == 1
