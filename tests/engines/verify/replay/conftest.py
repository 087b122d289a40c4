"""A second version of the tiny bundle, and requests recorded from the first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.bundle.manifest import read_manifest, write_manifest
from engines.serve.ranker import Ranker
from engines.serve.record.recorder import Recorder, RecordEvent
from engines.serve.score_request import ScoreRequest
from tests import tiny


def no_event(event: RecordEvent) -> None:
    """Ignore it."""


@pytest.fixture(scope="session")
def other_bundle(built_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Return a bundle whose item engine has every float weight scaled by 1 + noise of a size."""

    def make(noise: float) -> Path:
        copy = tmp_path_factory.mktemp("others") / "other"
        shutil.copytree(built_bundle, copy)
        rng = np.random.default_rng(0)
        for file in sorted((copy / "engines").rglob("item*.onnx")):
            model = onnx.load(file)
            for tensor in model.graph.initializer:
                values = numpy_helper.to_array(tensor)
                if values.dtype == np.float32 and values.size > 1:
                    scaled = values * (1 + noise * rng.standard_normal(values.shape)).astype(np.float32)
                    tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
            onnx.save(model, file)
        write_manifest(copy, read_manifest(copy))
        return copy

    return make


@pytest.fixture(scope="session")
def recorded(built_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 12 requests and the scores that the tiny bundle served."""
    folder = tmp_path_factory.mktemp("recorded")
    recorder = Recorder(folder, 1.0, 1 << 30, no_event)
    with Ranker.from_bundle(built_bundle) as ranker:
        for n in range(3, 15):
            asked = ScoreRequest(*tiny.user_and_items(n, n))
            recorder.offer(asked, ranker.score(asked.user, asked.items), "v1")
    assert recorder.close()
    return folder
