from __future__ import annotations

from pathlib import Path

import pytest

from examples.movielens.data.prepare import build, write
from examples.movielens.data.tables import Items, Ratings, Users
from examples.movielens.quality import measure
from examples.movielens.quality.page import BASE, COMPENSATED, MASKED, QUANTIZED


@pytest.mark.slow
def test_a_stopped_command_resumes(tmp_path: Path, tables: tuple[Ratings, Users, Items]) -> None:
    data = tmp_path / "data"
    features, splits = build(*tables, test_days=5)
    write(data, features, splits, "k")
    first = measure.measure_quality(data, tmp_path / "out", ["rankmixer"], [0], threads=1)
    assert [(r.ratio, r.variant) for r in first] == [
        *((ratio, v) for ratio in ("1:1", "3:1") for v in (BASE, MASKED, COMPENSATED)),
        ("3:1", QUANTIZED),
    ]
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("model.safetensors")}
    assert len(written) >= 6
    assert measure.measure_quality(data, tmp_path / "out", ["rankmixer"], [0], threads=1) == first
    assert {p: p.stat().st_mtime_ns for p in written} == written
