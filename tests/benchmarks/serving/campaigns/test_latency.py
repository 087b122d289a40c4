"""The ideal queue that latencies are compared with, and the campaign's short form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.campaigns.bench import Bench
from benchmarks.serving.campaigns.latency import ideal_queue, latency


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_ideal_queue_waits_as_the_formula_says(load: float) -> None:
    """Pollaczek and Khinchine: with one server and a constant time s, the mean wait is load / (2 (1 - load)) s."""
    ms = ideal_queue(0.002, load / 0.002, requests=400_000)
    assert ms.min() == pytest.approx(2.0)
    assert np.mean(ms) - 2.0 == pytest.approx(2.0 * load / (2 * (1 - load)), rel=0.05)


def test_every_answer_at_70_percent_is_right(built_bundle: Path, tmp_path: Path) -> None:
    found = latency(Bench(built_bundle, tmp_path, short=True, rivals=tmp_path / "none"))
    assert [str(check) for check in found.checks if not check.passed] == []
    one = found.figures["median"]["ugsep serve"]
    assert 0 < one["unloaded_p50_ms"] <= one["p99_ms"]
    assert found.figures["left_out"] == {"triton": "not installed; run: python -m benchmarks.serving rivals"}
