"""The command that times loading and scoring; its figures depend on the machine and are not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from benchmarks.score import ScoreCost, main, measure_scoring


def test_it_times_a_bundle(built_bundle: Path) -> None:
    cost = measure_scoring(built_bundle, 16, 1)
    assert cost.candidates == 16
    assert np.isfinite([cost.load_seconds, cost.cached_us, cost.computed_us]).all()
    assert min(cost.load_seconds, cost.cached_us, cost.computed_us) > 0


def test_a_missed_bound_ends_with_1() -> None:
    cost = ScoreCost(256, load_seconds=1.0, cached_us=101.0, computed_us=90.0)
    assert [t.passed for t in cost.checks()] == [True, False, True]


def test_it_prints_json(built_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["--bundle", str(built_bundle), "--candidates", "8", "--rounds", "1", "--json"])
    assert result.exit_code in (0, 1), result.output
    assert json.loads(result.stdout)["candidates"] == 8


def test_no_bundle_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--bundle", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
