"""The embedding table of every id input is found in the exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.build.id_ranges import table_sizes


def test_tables_are_found_behind_shape_changes_and_int8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["plain", "axes"], ["wide"]),
        helper.make_node("Gather", ["table", "wide"], ["a"]),
        helper.make_node("Gather", ["smaller", "plain"], ["b"]),
        helper.make_node("DequantizeLinear", ["int8", "scale"], ["floats"], axis=0),
        helper.make_node("Gather", ["floats", "quantized"], ["c"], axis=0),
        helper.make_node("Add", ["computed", "axes"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["d"]),
        helper.make_node("Gather", ["wider", "columns"], ["e"], axis=1),
    ]
    constants = {
        "axes": np.array([1]),
        "table": np.zeros((13, 2), np.float32),
        "smaller": np.zeros((11, 3), np.float32),
        "wider": np.zeros((2, 5), np.float32),
        "int8": np.zeros((17, 2), np.int8),
        "scale": np.ones(17, np.float32),
    }
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["n"])
        for n in ("plain", "quantized", "computed", "columns")
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "abcde"]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "ids", inputs, outputs, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "ids.onnx")
    # 'computed' is modified before the lookup, and 'columns' selects columns: neither has a known range.
    assert table_sizes(tmp_path / "ids.onnx") == {"plain": 11, "quantized": 17}
