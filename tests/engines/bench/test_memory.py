from __future__ import annotations

from pathlib import Path

import pytest

from engines.bench.memory import check_memory
from graphs.base.errors import UgsepError


def test_more_contenders_than_fit_are_refused_before_any_is_loaded(tmp_path: Path) -> None:
    full = tmp_path / "full.onnx"
    full.write_bytes(b"x" * 1_000)
    with (tmp_path / "full.onnx.data").open("wb") as data:
        data.truncate(1_000_000_000)  # sparse
    check_memory(3, full, 13_000_000_000)
    with pytest.raises(UgsepError) as refused:
        check_memory(5, full, 13_000_000_000)
    assert "need about 20.5 GB, 13.0 GB are free; about 3 fit: name fewer with --baselines" in str(refused.value)
    check_memory(0, full, 500_000_000)


def test_a_small_model_fits(built_bundle: Path) -> None:
    check_memory(20, built_bundle / "onnx" / "full.onnx")
