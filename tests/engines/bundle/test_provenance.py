"""Which code determines a bundle: editing a benchmark page or a command does not rebuild it."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from engines.backends.table import backend_names, find_backend
from engines.bundle.provenance import BUNDLE_CODE, ENGINE_CODE, code_sha256, tool_versions

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in ("graphs", "export", "quant", "engines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_versions_of_the_runtimes_are_among_the_tools() -> None:
    installed = {dist.name.lower() for dist in metadata.distributions()}
    packages = {find_backend(name).RUNTIME.package for name in backend_names()} & installed
    assert {"onnxruntime", "torch", "numpy"} | packages <= set(tool_versions())


@pytest.mark.parametrize("paths", [BUNDLE_CODE, ENGINE_CODE])
def test_a_copy_of_the_code_has_its_hash(tree: Path, paths: tuple[str, ...]) -> None:
    assert all((tree / path).exists() for path in paths)
    assert code_sha256(paths, tree) == code_sha256(paths)


@pytest.mark.parametrize(
    ("file", "shapes_a_bundle"),
    [
        ("engines/render/templates/bench.html", True),  # in the folder of the report's page, which is in a bundle
        ("engines/render/templates/report.html", True),
        ("quant/weights.py", True),
        ("engines/verify/checks.py", True),
        ("engines/backends/onnxruntime/build.py", True),
        ("engines/bench/page.py", False),
        ("engines/cli/main.py", False),
        ("engines/serve/ranker.py", False),
    ],
)
def test_only_code_that_shapes_a_bundle_counts(tree: Path, file: str, shapes_a_bundle: bool) -> None:
    before = code_sha256(BUNDLE_CODE, tree)
    with (tree / file).open("a") as source:
        source.write("\n")
    assert (code_sha256(BUNDLE_CODE, tree) != before) == shapes_a_bundle
