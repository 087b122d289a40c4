"""``python -m benchmarks.split``: the limit's arithmetic, a tiny run, and bad input."""

from __future__ import annotations

import dataclasses

import pytest
from click.testing import CliRunner

from benchmarks.split import CASES, SplitRun, bench, main, split_only
from engines.backends.onnxruntime import autotune
from engines.measure.percentiles import Percentiles
from engines.recipes.recipe import Recipe
from engines.verify.latency import RequestLatency
from tests import tiny

RECIPE = Recipe(
    model="zenith",
    config={
        **{"width": 32, "user_tokens": 4, "item_tokens": 3, "hidden": 40, "tower": 8},
        "features": [dataclasses.asdict(f) for f in tiny.FEATURES],
    },
)


def test_the_limit_counts_flops_for_items_and_bytes_for_the_user() -> None:
    times = [Percentiles(t, t, t) for t in (100.0, 6.0, 22.0, 30.0)]
    latency = RequestLatency(256, times[0], times[1], times[2], times[3], 100 / 30, 4.0)
    # 25 ms of the whole model's 100 for the items, 50 MB at 10 GB/s = 5 ms for the user.
    ops = {"full": {"MatMul": 90.0}, "item": {"MatMul": 20.0}, "user": {}}
    found = SplitRun("x", "fp32", latency, 0.25, 50e6, 10.0, ops)
    assert found.limit == pytest.approx(100 / 30)
    assert found.fraction == pytest.approx(1.0)
    assert found.row() == "| x | fp32 | 100.0 | 6.0 | 22.0 | 30.0 | 5.0 | 25.0 | 3.33x | 3.33x | 1.00 |"
    assert found.profile() == [
        "| op | whole | its item share | item graph | user graph |",
        "|---|---|---|---|---|",
        "| MatMul | 90.00 | 22.50 | 20.00 | 0.00 |",
    ]


@pytest.mark.parametrize(
    ("precision", "least_gain"), [pytest.param("fp32", 1.0, marks=pytest.mark.slow), ("w8a8-dynamic", -1e9)]
)
def test_a_tiny_model(monkeypatch: pytest.MonkeyPatch, precision: str, least_gain: float) -> None:
    monkeypatch.setattr(autotune, "LEAST_GAIN", least_gain)  # items of one user: gathered, broadcast
    found = bench("tiny", RECIPE, precision, candidates=9)
    assert 0 < found.item_share < 1
    assert found.latency.candidates == 9
    assert min(found.limit, found.latency.speedup, found.read_gb_s) > 0
    assert all(sum(found.ops[side].values()) > 0 for side in ("full", "user", "item"))


def test_splitting_alone_copies_nothing() -> None:
    said = split_only(RECIPE)
    assert "0 bytes of weights copied" in said
    assert "split in" in said


def test_bad_input_is_one_line() -> None:
    for arguments, message in (
        (["--case", "rankmixer-31"], "unknown 'rankmixer-31', did you mean 'rankmixer-3:1'?"),
        (["--precision", "fp23"], "unknown 'fp23', did you mean 'fp32'?"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert result.stderr == f"error: {message}\n"
    assert "rankmixer-1:1" in CASES
