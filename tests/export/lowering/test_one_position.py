"""Products with one position become element-wise ones, and no others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.lowering import lower_for_cpu

HEADS, WIDTH = 3, 5

# Equation of each product, the shapes of its operands (N candidates), and whether it is rewritten.
PRODUCTS: dict[str, tuple[list[int | str], list[int | str], bool]] = {
    "scores": ([HEADS, "N", 1, WIDTH], [HEADS, "N", WIDTH, 1], True),
    "values": ([HEADS, "N", 1, 1], [HEADS, "N", 1, WIDTH], True),
    "both": ([HEADS, "N", 1, 1], [HEADS, "N", 1, 1], True),
    "history": ([HEADS, "N", 1, WIDTH], [HEADS, "N", WIDTH, 4], False),
    "two": ([HEADS, "N", 2, WIDTH], [HEADS, "N", WIDTH, 1], False),
    "rows": (["N", WIDTH], [WIDTH, 1], False),
}


def write(path: Path, rng: np.random.Generator) -> Path:
    """Write a graph with all products, one whose keys are transposed heads first, and one with a weight."""
    inputs, nodes, outputs = [], [], []
    for name, (left, right, _) in PRODUCTS.items():
        for side, shape in (("a", left), ("b", right)):
            inputs.append(helper.make_tensor_value_info(f"{name}.{side}", TensorProto.FLOAT, shape))
        nodes.append(helper.make_node("MatMul", [f"{name}.a", f"{name}.b"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(left)))
    for side in ("q", "k"):
        inputs.append(helper.make_tensor_value_info(side, TensorProto.FLOAT, ["N", 1, HEADS, WIDTH]))
    nodes += [
        helper.make_node("Transpose", ["q"], ["queries"], perm=[2, 0, 1, 3]),
        helper.make_node("Transpose", ["k"], ["keys"], perm=[2, 0, 3, 1]),
        helper.make_node("MatMul", ["queries", "keys"], ["attention"]),
        helper.make_node("MatMul", ["queries", "weight"], ["logit"]),
    ]
    outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in ("attention", "logit")]
    weight = numpy_helper.from_array(rng.standard_normal((HEADS, 1, WIDTH, 1)).astype(np.float32), "weight")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_single_positions_are_multiplied_element_wise(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    source = write(tmp_path / "a.onnx", rng)
    lowered = lower_for_cpu(source, tmp_path / "b.onnx").path
    ops = Counter(node.op_type for node in onnx.load(lowered).graph.node)
    kept = sum(not rewritten for *_, rewritten in PRODUCTS.values()) + 1
    assert (ops["MatMul"], ops["Mul"], ops["ReduceSum"]) == (kept, 4, 2)
    # The keys are transposed once, to the order of the queries.
    orders = [n.attribute[0].ints for n in onnx.load(lowered).graph.node if n.op_type == "Transpose"]
    assert sorted(map(list, orders)) == [[0, 1, 3, 2], [2, 0, 1, 3], [2, 0, 1, 3]]
    sessions = [ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (source, lowered)]
    for candidates in (1, 6):
        feeds: dict[str, NDArray[np.float32]] = {}
        for given in sessions[0].get_inputs():
            shape = [candidates if d == "N" else d for d in given.shape]
            feeds[given.name] = rng.standard_normal(shape).astype(np.float32)
        before, after = (session.run(None, feeds) for session in sessions)
        for name, a, b in zip((o.name for o in sessions[0].get_outputs()), before, after, strict=True):
            assert a.shape == b.shape, name
            # Sums of 5 products of size about 1, in another order.
            np.testing.assert_allclose(a, b, rtol=0, atol=5 * 5 * 2.0**-24 * 16, err_msg=name)
