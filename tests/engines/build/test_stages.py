"""A backend that cannot take a graph is left out of the bundle, unless it is to serve it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.build import stages
from engines.build.sources import Sources
from engines.compile.compile import EnginePlan
from engines.recipes.recipe import Recipe
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress
from tests import tiny

pytest.importorskip("tensorrt_rtx", reason="pip install 'ugsep[tensorrt-rtx]'")

FOR_RTX = dataclasses.replace(
    tiny.RECIPE, serving=dataclasses.replace(tiny.RECIPE.serving, compile_for=("tensorrt-rtx",))
)
RTX = (EnginePlan("user", "tensorrt-rtx", "w8a16"), EnginePlan("item", "tensorrt-rtx", "w8a16"))


def shifting(path: Path) -> Path:
    """Write a graph that shifts unsigned integers, which TensorRT cannot read; it needs no int8 weight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.UINT64),
        helper.make_node("BitShift", ["wide", "seven"], ["shifted"], direction="RIGHT"),
        helper.make_node("Cast", ["shifted"], ["y"], to=TensorProto.FLOAT),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.INT64, ["users", 3])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["users", 3])
    seven = numpy_helper.from_array(np.array(7, np.uint64), "seven")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [given], [made], [seven]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path


def job(folder: Path, recipe: Recipe, seen: list[Progress]) -> stages.BuildJob:
    return stages.BuildJob("tiny", recipe, Sources(None), folder / "work", None, seen.append)


def test_a_backend_that_was_not_asked_for_is_left_out_with_a_note(tmp_path: Path) -> None:
    seen: list[Progress] = []
    graphs = {side: shifting(tmp_path / f"{side}.w8a16.onnx").with_name(f"{side}.onnx") for side in ("user", "item")}
    made, serving = job(tmp_path, FOR_RTX, seen), stages.Selection(())
    lowered = stages.lower(made, graphs, serving, tmp_path / "lowered")  # type: ignore[arg-type]  # sides
    assert [engine.plan for engine in lowered.engines] == list(RTX)
    compiled = stages.compile_engines(made, serving, lowered)
    assert compiled.engines == []
    (note,) = compiled.notes
    assert note.startswith("tensorrt-rtx: left out: user w8a16: ")
    assert "TensorRT-RTX cannot compile it" in note
    assert note in [step.note for step in seen]
    assert not (made.work / "engines" / "tensorrt-rtx").exists()


def test_a_graph_that_cannot_be_lowered_is_left_out_as_well(tmp_path: Path) -> None:
    graphs = {side: tmp_path / f"{side}.onnx" for side in ("user", "item")}
    lowered = stages.lower(job(tmp_path, FOR_RTX, []), graphs, stages.Selection(()), tmp_path)  # type: ignore[arg-type]
    assert lowered.engines == []
    (note,) = lowered.notes
    assert note.startswith("tensorrt-rtx: left out: user w8a16: ")


def test_a_backend_that_serves_is_refused(tmp_path: Path) -> None:
    graphs = {side: shifting(tmp_path / f"{side}.w8a16.onnx").with_name(f"{side}.onnx") for side in ("user", "item")}
    made, serving = job(tmp_path, FOR_RTX, []), stages.Selection(RTX)
    lowered = stages.lower(made, graphs, serving, tmp_path / "lowered")  # type: ignore[arg-type]  # sides
    with pytest.raises(UgsepError, match="TensorRT-RTX cannot compile it") as caught:
        stages.compile_engines(made, serving, lowered)
    assert str(caught.value).isprintable()
