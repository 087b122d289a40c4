"""Fixtures shared by the packages' tests: one tiny bundle, built once per session by the real pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from engines.cli.telemetry import disable_telemetry
from tests import tiny

pytest_plugins = ("tests.quant.graph_fixtures",)
disable_telemetry()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sources(tmp_path_factory: pytest.TempPathFactory):
    return tiny.sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def built_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_sources) -> Path:
    from engines.build.pipeline import build

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    outcome = build("tiny", tiny.RECIPE, tiny_sources, out)
    assert not outcome.unchanged
    return out


@pytest.fixture
def bundle(built_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    copy = tmp_path / "bundle"
    shutil.copytree(built_bundle, copy)
    return copy
