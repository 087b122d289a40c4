"""ONNX graphs of GEMMs alone, inputs times constant weights, for timing machines and precisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def gemm_graph(gemms: Sequence[tuple[str, NDArray[np.float32]]]) -> onnx.ModelProto:
    """Return a graph with one MatMul per pair of an input's name and a weight; product ``i`` is the output ``y{i}``.

    Args:
        gemms: for a weight [K, N] the input is [candidates, K]; for a weight [T, K, N] it is [candidates, T, K].
    """
    nodes, inputs, outputs, weights = [], {}, [], []
    for i, (x, weight) in enumerate(gemms):
        *tokens, k, n = weight.shape
        if x not in inputs:
            inputs[x] = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["candidates", *tokens, k])
            if tokens:
                nodes.append(helper.make_node("Transpose", [x], [f"{x}.tokens"], perm=[1, 0, 2]))
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"{x}.tokens" if tokens else x, f"w{i}"], [f"y{i}"]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [*tokens, "candidates", n]))
    graph = helper.make_graph(nodes, "gemms", list(inputs.values()), outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
