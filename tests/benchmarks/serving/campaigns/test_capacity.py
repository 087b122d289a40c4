"""The whole model behind our own server, and the search for a capacity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.campaigns.bench import Bench
from benchmarks.serving.campaigns.capacity import capacity


@pytest.mark.slow  # CI has a step of its own for the campaigns
def test_the_whole_model_is_served_the_same_way(built_bundle: Path, tmp_path: Path) -> None:
    found = capacity(Bench(built_bundle, tmp_path, short=True))
    assert [str(check) for check in found.checks if not check.passed] == []
    assert set(found.figures["per_second"]) == {"warm cache", "cold cache", "whole model"}
    assert found.figures["hit_ratio"]["cold cache"] == 0
    assert found.figures["hit_ratio"]["warm cache"] > 0.5
    fastest = min(found.figures["runtimes_p50_ms"], key=found.figures["runtimes_p50_ms"].get)
    assert found.figures["runtime"] == fastest
    assert np.isfinite(list(found.figures["per_second"].values())).all()
