from __future__ import annotations

import pytest

from engines.bench.baselines import BASELINES, choose_baselines
from graphs.base.errors import UgsepError


def test_baselines_are_named() -> None:
    assert choose_baselines("all") == tuple(BASELINES)
    assert choose_baselines("none") == ()
    assert choose_baselines("pytorch, onnxruntime") == ("pytorch", "onnxruntime")
    with pytest.raises(UgsepError, match="unknown baseline 'onnxruntme', did you mean 'onnxruntime'"):
        choose_baselines("onnxruntme")
