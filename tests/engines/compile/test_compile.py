"""The engine cache in builds: a change of recipe, tools, code or machine causes a rebuild."""

from __future__ import annotations

import ast
import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends.onnxruntime import backend as ort_backend
from engines.backends.onnxruntime import session as ort_session
from engines.backends.tensorrt import backend as trt_backend
from engines.backends.tensorrt_rtx import backend as rtx_backend
from engines.backends.trt.gpu import gpu
from engines.bundle.provenance import ENGINE_CODE, code_sha256
from engines.compile import compile as compiling
from engines.compile.cache import list_entries
from engines.compile.compile import EnginePlan, compile_engine, serving_plans
from engines.recipes.recipe import Recipe
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress
from tests import tiny
from tests.export.lowering_graphs import item

ROOT = Path(__file__).parents[3]

PLAN = EnginePlan("item", "onnxruntime", "fp32")
RECIPE = dataclasses.replace(tiny.RECIPE, serving=dataclasses.replace(tiny.RECIPE.serving, threads=1))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return item(tmp_path / "onnx" / "item.onnx", np.random.default_rng(), False)


def was_cached(tmp_path: Path, source: Path, recipe: Recipe = RECIPE, plan: EnginePlan = PLAN) -> bool:
    folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    said: list[Progress] = []
    compile_engine(recipe, plan, source, folder, tmp_path / "cache", said.append)
    assert (folder / "item.onnx").is_file()
    return any("from the engine cache" in p.note for p in said)


def serving(**changes: Any) -> Recipe:
    return dataclasses.replace(RECIPE, serving=dataclasses.replace(RECIPE.serving, **changes))


def test_the_same_build_hits_also_from_elsewhere(tmp_path: Path, source: Path) -> None:
    assert not was_cached(tmp_path, source)
    assert was_cached(tmp_path, source)
    moved = tmp_path / "deep" / "er"
    shutil.copytree(source.parent, moved)
    assert was_cached(tmp_path, moved / "item.onnx")
    # Settings that do not affect compilation are not part of the key.
    assert was_cached(
        tmp_path, source, dataclasses.replace(RECIPE, gates=dataclasses.replace(RECIPE.gates, sqnr_db=9))
    )


@pytest.mark.parametrize(
    "recipe",
    [
        serving(threads=2),
        serving(candidates=(1, 10)),
        serving(max_candidates=65),
        serving(max_users=2),
        serving(options={"onnxruntime": {"spinning": True}}),
        serving(options={"onnxruntime": {"save_optimized": True}}),
    ],
    ids=["threads", "most frequent size", "largest size", "most users", "an option", "another option"],
)
def test_a_changed_setting_misses(tmp_path: Path, source: Path, recipe: Recipe) -> None:
    assert not was_cached(tmp_path, source)
    assert not was_cached(tmp_path, source, recipe)
    assert was_cached(tmp_path, source, recipe)
    assert was_cached(tmp_path, source)


def test_engines_are_tuned_for_one_user_and_take_several(tmp_path: Path, source: Path) -> None:
    built = compile_engine(serving(max_users=5), PLAN, source, tmp_path)
    (profile,) = built.profiles
    assert (profile.users.min, profile.users.opt, profile.users.max) == (1, 1, 5)


def test_a_side_without_a_precision_is_refused() -> None:
    with pytest.raises(UgsepError, match=r"serving.precision has no precision for the user side; give both"):
        serving_plans(serving(precision={"item": "fp32"}))


def test_an_option_of_another_backend_changes_nothing(tmp_path: Path, source: Path) -> None:
    assert not was_cached(tmp_path, source)
    assert was_cached(tmp_path, source, serving(options={"openvino": {"streams": 2}}))


def flip_weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "mix.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[-1, -1, -1] += 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def swap_activation(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Sigmoid").op_type = "Tanh"


@pytest.mark.parametrize("change", [flip_weight, swap_activation])
def test_a_changed_graph_misses(tmp_path: Path, source: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    assert not was_cached(tmp_path, source)
    model = onnx.load(source)
    change(model)
    onnx.save(model, source)
    assert not was_cached(tmp_path, source)


def test_changed_tools_code_or_machine_miss(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not was_cached(tmp_path, source)
    tools = compiling.tool_versions()
    for name, value in {
        "tool_versions": lambda: tools | {"onnxruntime": "0.0.1"},
        "code_sha256": lambda _: "of an edited file",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(compiling, name, value)
            assert not was_cached(tmp_path, source), name
    with monkeypatch.context() as patch:
        patch.setattr(ort_session, "host_isa", lambda: "another-cpu")
        assert not was_cached(tmp_path, source)
    assert was_cached(tmp_path, source)


def test_a_cached_engine_is_not_lowered_again_unless_it_is_damaged(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: list[Path] = []
    lower = ort_backend.lower
    monkeypatch.setattr(
        ort_backend, "lower", lambda spec, out, tell: (lowered.append(out), lower(spec, out, tell))[1]
    )
    assert not was_cached(tmp_path, source)
    assert was_cached(tmp_path, source)
    assert len(lowered) == 1
    (engine,) = (tmp_path / "cache").glob("*/*/item.onnx")
    engine.write_bytes(engine.read_bytes()[:-1])
    assert not was_cached(tmp_path, source)
    assert len(lowered) == 2
    assert not any(folder.exists() for folder in lowered), "lowered graphs are removed once compiled"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources that a test may edit, used for engine keys instead of ours."""
    copy = tmp_path / "tree"
    for package in ("graphs", "export", "quant", "engines"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiling, "code_sha256", partial(code_sha256, root=copy))
    return copy


def edit(file: Path) -> None:
    assert file.is_file()
    file.write_text(file.read_text() + "\n# edited\n")


def test_pages_and_benchmarks_are_no_part_of_an_engine_s_key(tmp_path: Path, source: Path, tree: Path) -> None:
    assert not was_cached(tmp_path, source)
    edit(tree / "engines/render/templates/report.html")
    bench = tree / "engines/bench/findings.py"
    bench.write_text(bench.read_text().replace('"""', '"""Edited. ', 1))
    edit(tree / "engines/cli/main.py")
    assert was_cached(tmp_path, source)
    edit(tree / "export/lowering/matmul_nbits.py")
    assert not was_cached(tmp_path, source)
    edit(tree / "engines/backends/onnxruntime/build.py")
    assert not was_cached(tmp_path, source)


def test_the_code_in_an_engine_s_key_imports_nothing_else_of_ours() -> None:
    """Otherwise an edit of an imported file would change engines but not their keys."""
    places = [ROOT / place for place in ENGINE_CODE]
    files = [f for place in places for f in ([place] if place.is_file() else place.rglob("*.py"))]
    ours = {"graphs", "export", "quant", "engines"}
    allowed = ["graphs.base.errors", "graphs.base.json_words"]  # messages are not part of an engine
    taken = {
        f"{node.module}.{alias.name}"
        for f in files
        for node in ast.walk(ast.parse(f.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ours
        for alias in node.names
    }
    hashed = tuple(f"{place.removesuffix('.py').replace('/', '.')}." for place in (*ENGINE_CODE, *allowed))
    assert not {name for name in taken if not f"{name}.".startswith(hashed)}


def test_every_backend_names_what_its_engines_are_tied_to() -> None:
    assert ort_backend.target() == ort_session.host_isa() != ""
    assert rtx_backend.target() == "any machine"
    capability, reason = gpu()
    assert (reason if capability is None else capability) in trt_backend.target()


def test_builds_share_a_folder_beside_the_cache_for_what_speeds_up_later_ones(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []
    lower = ort_backend.lower
    monkeypatch.setattr(
        ort_backend, "lower", lambda spec, out, tell: (seen.append(spec.scratch), lower(spec, out, tell))[1]
    )
    assert not was_cached(tmp_path, source)
    assert not was_cached(tmp_path, source, serving(threads=2))
    assert seen == [tmp_path / "cache" / ".scratch"] * 2
    (tmp_path / "cache" / ".scratch").mkdir()
    assert [e.problem for e in list_entries(tmp_path / "cache")] == ["", ""]  # it is not an entry
