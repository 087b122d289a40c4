"""The short form of the campaign: its times mean nothing, its answers and figures do."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving.campaigns.bench import Bench
from benchmarks.serving.campaigns.latency import SHARE, latency


def test_every_answer_at_70_percent_is_right(built_bundle: Path, tmp_path: Path) -> None:
    found = latency(Bench(built_bundle, tmp_path, short=True, rivals=tmp_path / "none"))
    assert [str(check) for check in found.checks if not check.passed] == []
    (turn,) = found.figures["steady"]["ugsep serve"]
    assert found.figures["median"]["ugsep serve"] == turn
    assert turn["rate"] == SHARE * turn["before"]
    assert turn["after"] > 0
    assert 0 < turn["unloaded_p50_ms"] <= turn["p99_ms"]
    assert 0 < turn["measured_p50_ms"] <= turn["measured_p99_ms"]
    assert found.figures["set_apart"] == {"ugsep serve": []}
    assert found.figures["left_out"] == {"triton": "not installed; run: python -m benchmarks.serving rivals"}
