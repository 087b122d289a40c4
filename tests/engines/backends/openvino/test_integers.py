"""Integers that OpenVINO's CPU plugin would cut to 32 bits or round to float32 are refused; the others are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends.build import build_engine
from engines.backends.engine_spec import BuildSpec
from engines.backends.openvino import backend
from engines.backends.openvino.integers import check_integers
from graphs.base.errors import UgsepError

INT, FLOAT = TensorProto.INT64, TensorProto.FLOAT
ROWS = 11
TABLE = np.linspace(-1.0, 1.0, ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
LOOKUP = helper.make_node("Gather", ["table", "key"], ["looked.up"], axis=0)


def node(op: str, *inputs: str, out: str = "out", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [out], **attributes)


def model(nodes: list[onnx.NodeProto], out: int = FLOAT, shape: tuple[object, ...] = ("rows",)) -> onnx.ModelProto:
    """A graph of the inputs ``key`` and ``divisor`` [rows] with a table and a few constants."""
    inputs = [helper.make_tensor_value_info(name, INT, ["rows"]) for name in ("key", "divisor")]
    held = [
        numpy_helper.from_array(value, name)
        for name, value in (("table", TABLE), ("seven", np.array(7)), ("axis", np.array([1])), ("last", np.array(5)))
    ]
    graph = helper.make_graph(nodes, "ids", inputs, [helper.make_tensor_value_info("out", out, shape)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("nodes", "op", "name"),
    [
        ([node("Mod", "key", "seven")], "Mod", "key"),
        ([node("Div", "key", "divisor")], "Div", "key"),
        ([LOOKUP, node("Div", "key", "divisor")], "Div", "divisor"),
        ([LOOKUP, node("Mul", "key", "seven")], "Mul", "key"),  # the hash of a small id is not small
        ([node("Unsqueeze", "key", "axis", out="wide"), node("Add", "wide", "seven")], "Add", "key"),
        ([node("Cast", "key", out="same", to=INT), node("CumSum", "same", "seven")], "CumSum", "key"),
        ([node("Concat", "key", "divisor", out="both", axis=0), node("ReduceSum", "both")], "ReduceSum", "key"),
        ([node("Equal", "key", "seven", out="is"), node("Where", "is", "divisor", "seven", out="chosen"),
          node("Mod", "chosen", "seven")], "Mod", "divisor"),
    ],
)  # fmt: skip
def test_integers_that_would_be_rounded_are_refused(nodes: list[onnx.NodeProto], op: str, name: str) -> None:
    with pytest.raises(UgsepError) as caught:
        check_integers(model(nodes).graph)
    assert f"'openvino' computes {op} of integers" in str(caught.value)
    assert f"which input '{name}' may exceed; use backend 'onnxruntime'" in str(caught.value)


@pytest.mark.parametrize(
    "nodes",
    [
        [LOOKUP, node("Mod", "key", "seven")],
        [LOOKUP, node("Sub", "key", "seven", out="less"), node("Div", "less", "seven")],
        [node("Cast", "key", out="real", to=FLOAT), node("Mul", "real", "real")],
        [node("Greater", "key", "divisor", out="is"), node("Cast", "is", out="one", to=INT),
         node("CumSum", "one", "seven", out="place"), node("Mul", "place", "seven")],
        [node("Shape", "key", out="sizes"), node("Mul", "sizes", "seven")],
        [node("Gather", "table", "divisor", axis=1)],
    ],
)  # fmt: skip
def test_integers_that_stay_exact_are_not_refused(nodes: list[onnx.NodeProto]) -> None:
    check_integers(model(nodes).graph)


def test_what_is_not_refused_is_exact_up_to_31_bits_and_more_is_refused_in_the_call(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'ugsep[openvino]'")
    source = tmp_path / "full.onnx"
    made = model(
        [
            node("Greater", "key", "divisor", out="is"),
            node("Where", "is", "key", "divisor", out="larger"),
            node("Equal", "larger", "key", out="same"),
            node("Cast", "same", out="out", to=FLOAT),
        ]
    )
    onnx.save(made, source)
    (tmp_path / "out").mkdir()
    built = build_engine(backend, BuildSpec("full", source, "fp32"), tmp_path / "out", lambda message: None)
    runner = backend.load(tmp_path / "out", built)
    rng = np.random.default_rng()
    feeds = {name: rng.integers(-(2**31), 2**31, 999) for name in ("key", "divisor")}
    feeds["divisor"][::3] = feeds["key"][::3] - 1
    expected = ort.InferenceSession(str(source)).run(None, feeds)[0]
    np.testing.assert_array_equal(runner.infer(feeds)["out"], expected)
    for wrong in (2**31, -(2**31) - 1):
        with pytest.raises(UgsepError, match="input 'divisor' holds an id beyond 32 bits, which OpenVINO cuts"):
            runner.infer({**feeds, "divisor": np.where(np.arange(999) == 700, wrong, feeds["divisor"])})


def test_a_quotient_is_not_built(tmp_path: Path) -> None:
    """At 10^9 OpenVINO's quotient of two integers is wrong, which the small ids of no gate show."""
    pytest.importorskip("openvino", reason="pip install 'ugsep[openvino]'")
    onnx.save(
        model([node("Div", "key", "divisor", out="row"), node("Cast", "row", to=FLOAT)]), tmp_path / "full.onnx"
    )
    with pytest.raises(UgsepError, match="computes Div of integers"):
        build_engine(backend, BuildSpec("full", tmp_path / "full.onnx", "fp32"), tmp_path, lambda message: None)
