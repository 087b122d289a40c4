"""RMSNorm becomes one node where its steps are the norm's alone, and stays as it is anywhere else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.lowering import lower_for_cpu

ROWS, TOKENS, WIDTH, EPSILON = 3, 4, 7, 1e-3


def write(
    path: Path,
    scale: tuple[int, ...] = (WIDTH,),
    axis: int = -1,
    exponent: float = 2.0,
    square: str = "Pow",
    swapped: bool = False,
    also: str = "",
) -> Path:
    """Write x / sqrt(mean(x^2) + epsilon) * scale of x [N, T, D]; ``also`` names a step that is an output too."""
    rng = np.random.default_rng(5)
    weights = {
        "scale": rng.uniform(0.5, 2.0, scale).astype(np.float32),
        "epsilon": np.array(EPSILON, np.float32),
        "exponent": np.array(exponent, np.float32),
        "axes": np.array([axis], np.int64),
    }
    nodes = [
        helper.make_node(square, ["x", "exponent" if square == "Pow" else "x"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1),
        helper.make_node("Add", ["epsilon", "mean"] if swapped else ["mean", "epsilon"], ["total"]),
        helper.make_node("Sqrt", ["total"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["ratio"]),
        helper.make_node("Mul", ["scale", "ratio"] if swapped else ["ratio", "scale"], ["y"]),
    ]
    shape = ["N", TOKENS, WIDTH]
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", also) if name],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def run(path: Path) -> np.ndarray:
    x = np.random.default_rng(6).normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("settings", [{}, {"scale": (1, 1, WIDTH)}, {"square": "Mul", "swapped": True}, {"axis": 2}])
def test_a_norm_is_one_node(tmp_path: Path, settings: dict) -> None:
    source = write(tmp_path / "norm.onnx", **settings)
    lowered = lower_for_cpu(source, tmp_path / "lowered.onnx", "integer-rows").path
    model = onnx.load(lowered)
    assert [node.op_type for node in model.graph.node] == ["RMSNormalization"]
    assert model.opset_import[0].version == 23  # the first that has it
    # A sum of 7 squares, a root, a division and two products: about ten roundings of 2^-24 on either side.
    np.testing.assert_allclose(run(lowered), run(source), rtol=20 * 2.0**-24, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": (TOKENS, WIDTH)},
        {"scale": (1,)},
        {"axis": 1},
        {"exponent": 4.0},
        {"also": "ratio"},
        {"also": "mean"},
    ],
)
def test_anything_else_stays(tmp_path: Path, settings: dict) -> None:
    source = write(tmp_path / "norm.onnx", **settings)
    lowered = lower_for_cpu(source, tmp_path / "lowered.onnx", "integer-rows").path
    before, after = onnx.load(source), onnx.load(lowered)
    assert Counter(n.op_type for n in after.graph.node) == Counter(n.op_type for n in before.graph.node)
    assert after.opset_import[0].version == 21
    np.testing.assert_array_equal(run(lowered), run(source))
