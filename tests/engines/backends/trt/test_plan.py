"""Plans of both TensorRTs: rows of a profile, and which layer reads which weight."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.backends.engine_spec import Profile, Rows
from engines.backends.graph_io import graph_io
from engines.backends.trt.plan import Layer, build_plan, int8_statuses, parse_layers, row_counts
from engines.backends.trt.worker import PlanJob, Settings
from graphs.base.config import parse
from graphs.base.errors import UgsepError


def test_a_compiler_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = tmp_path / "dies.sh"
    dies.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    with pytest.raises(UgsepError, match=r"stopped while compiling \(it was ended by SIGSEGV\)") as error:
        build_plan(PlanJob("tensorrt_rtx", "a.onnx", "a.engine", (), Settings()))
    assert "\n" not in str(error.value)


def test_an_outcome_is_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = tmp_path / "says.sh"
    says.write_text("#!/bin/sh\necho '{\"layers\": 3}'\n")
    says.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(says))
    with pytest.raises(UgsepError, match="the outcome of TensorRT-RTX: layers is 3, not a string"):
        build_plan(PlanJob("tensorrt_rtx", "a.onnx", "a.engine", (), Settings()))


def test_a_job_survives_the_way_to_the_process() -> None:
    shapes = {"x": ((1, 3), (4, 3), (8, 3))}
    job = PlanJob("tensorrt_rtx", "a.onnx", "a.engine", (shapes,), Settings(((8, 9), (12, 0)), 3, refit=True))
    assert parse(PlanJob, json.loads(json.dumps(dataclasses.asdict(job))), "job") == job


def test_a_graph_it_cannot_parse_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'ugsep[tensorrt-rtx]'")
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    job = PlanJob("tensorrt_rtx", str(tmp_path / "a.onnx"), str(tmp_path / "a.engine"), (), Settings(((8, 9),)))
    with pytest.raises(UgsepError, match=r"a\.onnx: TensorRT-RTX cannot compile it \(.+\)") as error:
        build_plan(job)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a.engine").exists()


def test_a_single_row_leaves_room_for_a_second() -> None:
    spec = graph_io_spec("x", ["users", 3])
    assert row_counts(Profile(Rows(1, 1, 1)), spec) == ((1, 3), (1, 3), (2, 3))
    assert row_counts(Profile(Rows(2, 4, 8)), spec) == ((2, 3), (4, 3), (8, 3))


def graph_io_spec(name: str, shape: list[Any]) -> Any:
    info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, shape)
    inputs, _ = graph_io(onnx.helper.make_model(onnx.helper.make_graph([], "g", [info], [])))
    return inputs[0]


def test_a_weight_in_the_plugin_is_read_as_int8() -> None:
    layer = Layer("w8a16_gemm_0", "PluginV3", (("w_constant", "Int8"),), ("gemm:w",))
    (inside,) = int8_statuses((layer,), {"w": "w"}, frozenset({"w"}))
    assert (inside.status, inside.detail) == ("fused-int8", "w8a16_gemm_0 plugin")
    (lost,) = int8_statuses((), {"w": "w"}, frozenset({"w"}))  # the plugin is not in the engine
    assert lost.status == "folded-to-float"


def test_layer_lines_are_parsed() -> None:
    log = (
        "Layers:\n"
        "Name: a_0, LayerType: kgen, Inputs: [ { Name: x, Datatype: Half }], Constants: [ { Name: w_constantInt8, "
        "Dimensions: [3,4], Datatype: Int8, Format: (Linear) }, { Name: s, Datatype: Half }], Outputs: [ { Name: y, "
        "Datatype: Half }], TacticName: t, Metadata: [ONNX Layer: int8:w[0]]\x1e[ONNX Layer: gemm:w[0]]\n"
        "I/O Tensors:\n Name: x, IOMode: Input\n"
    )
    (layer,) = parse_layers(log)
    assert (layer.name, layer.kind) == ("a_0", "kgen")
    assert layer.constants == (("w_constantInt8", "Int8"), ("s", "Half"))
    assert layer.nodes == ("int8:w[0]", "gemm:w[0]")
