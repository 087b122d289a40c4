"""A second tiny bundle, of a model with other weights, and the watcher of a served path."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.backends.onnxruntime import autotune
from tests import tiny


@pytest.fixture(scope="session")
def second_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the weights of another seed, and with every variant of its engines."""
    from engines.build.pipeline import build

    sources = tiny.sources(tmp_path_factory.mktemp("second-sources"), seed=1)
    out = tmp_path_factory.mktemp("second-bundle") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "LEAST_GAIN", -1e9)  # whatever this machine measures
        build("tiny", tiny.RECIPE, sources, out)
    return out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a server looks for its bundle."""
    return tmp_path / "serving" / "tiny"
