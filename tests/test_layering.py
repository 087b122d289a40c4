"""Imports point only left: graphs -> export -> quant -> engines."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("graphs", "export", "quant", "engines")


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_package_imports_only_what_stands_left_of_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    right = set(ORDER[ORDER.index(package) + 1 :]) | {"examples", "tests"}
    wrong = {str(f.relative_to(ROOT)): sorted(imported_packages(f) & right) for f in files}
    assert {f: w for f, w in wrong.items() if w} == {}


@pytest.mark.parametrize("package", ["graphs", "export"])
def test_package_knows_no_runtime(package: str) -> None:
    runtimes = {"onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "polygraphy"}
    if package == "graphs":
        runtimes |= {"onnx", "onnx_ir", "onnxscript"}
    for path in (ROOT / package).rglob("*.py"):
        assert not imported_packages(path) & runtimes, path


def test_a_module_level_import_of_the_right_package_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    from engines.serve.ranker import Ranker\n    return Ranker\n")
    assert "engines" in imported_packages(tmp_path / "bad.py")


def test_files_stay_small() -> None:
    long = {
        str(f.relative_to(ROOT)): n
        for package in (*ORDER, "examples")
        for f in (ROOT / package).rglob("*.py")
        if (n := len(f.read_text().splitlines())) > 420
    }
    assert long == {}
