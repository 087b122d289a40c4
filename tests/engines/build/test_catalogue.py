"""``ugsep models``: the static rows, the figures of bundles, and the page with both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engines.build.catalogue import from_report, measured
from engines.cli.main import main
from engines.recipes.recipe import dump_recipe, load_recipe, recipe_names

NAME = "rankmixer-100m"  # declares its own features, so nothing is downloaded
COST = {"flops": 10, "weight_bytes": 40}
REPORT: dict[str, Any] = {
    "model": NAME,
    "backend": "onnxruntime",
    "passed": True,
    "targets": [],
    "split": {"user": COST, "item": COST, "full": COST, "state_bytes_per_user": 8},
    "latency": {
        "candidates": 256,
        "speedup": 1.8,
        "limit": 2.25,
        "request": {"p50": 12.34, "p90": 12.5, "p99": 13.0},
    },
    "weights": {"fp32_bytes": 400_000_000, "quantized_bytes": 101_000_000},
    "auc": {"fp32": {"like": 0.75}, "quantized": {"like": 0.7499}},
}


def bundle(folder: Path, report: dict[str, Any] = REPORT, **config: Any) -> Path:
    folder.mkdir(parents=True)
    recipe = load_recipe(NAME)
    recipe = dataclasses.replace(recipe, config=recipe.config | config)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(autouse=True)
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder without the features.json of ``make data``."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def test_figures_of_a_report() -> None:
    found = from_report(REPORT)
    assert (found.candidates, found.speedup, found.limit, found.request_ms) == (256, 1.8, 2.25, 12.34)
    assert found.auc == 0.75
    assert found.auc_change == pytest.approx(-1e-4)
    unlabelled = from_report(REPORT | {"auc": {"fp32": {}, "quantized": {}}})
    assert unlabelled.auc is None
    assert unlabelled.auc_change is None


def test_only_a_bundle_of_the_recipe_itself_counts(tmp_path: Path) -> None:
    recipe = load_recipe(NAME)
    assert measured(tmp_path / "none", recipe) is None
    assert measured(bundle(tmp_path / "same"), recipe) is not None
    assert measured(bundle(tmp_path / "other", layers=3), recipe) is None


def test_static_rows_need_no_bundle(tmp_path: Path) -> None:
    result = run("--json")
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {n for n in recipe_names() if "features" in load_recipe(n).config}
    row = rows[NAME]
    assert row["parameters"] == pytest.approx(100e6, rel=0.05)
    assert row["ratio"] == "8:8"
    assert 0.5 < row["reusable_share"] < 0.6
    assert "measured" not in row


def test_the_page_holds_every_model_and_replaces_itself(tmp_path: Path) -> None:
    bundle(tmp_path / "build" / NAME)
    page = tmp_path / "docs" / "models.md"
    page.parent.mkdir()
    page.write_text("# Models\n\nBefore.\n\n<!-- begin models -->\nold\n<!-- end models -->\n\nAfter.\n")
    for _ in range(2):
        result = run("--bundles", tmp_path / "build", "--page", page)
        assert result.exit_code == 0
    text = page.read_text()
    assert text.startswith("# Models\n\nBefore.\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old" not in text
    assert text.count("<!-- begin models -->") == 1
    (line,) = [row for row in text.splitlines() if row.startswith(f"| {NAME} |")]
    assert "| 2.25x | 1.80x at 256 | 80% | 12.3 | 400 -> 101 | 0.7500 | -1.0e-04 |" in line
    (other,) = [row for row in text.splitlines() if row.startswith("| rankmixer-1b |")]
    assert other.endswith("| - | - | - | - | - | - |")
    shown = page.with_suffix(".html").read_text()
    assert "<svg" in shown
    assert "1.80x" in shown
    assert "http://" not in shown.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--page", "models.md"], "--page needs measurements"),
        (["--bundles", "nowhere"], "'nowhere' is not a directory"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_broken_report_is_one_line(tmp_path: Path) -> None:
    bundle(tmp_path / NAME)
    for text in ("{", "[" * 100_000, '{"model": 1, "model": 2}', '{"auc": NaN}'):
        (tmp_path / NAME / "report.json").write_text(text)
        result = run("--bundles", tmp_path)
        assert result.exit_code == 2
        assert "report.json: not valid JSON" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
