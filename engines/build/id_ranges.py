"""The number of rows in the embedding table of each id input, read from the exported graph."""

from __future__ import annotations

from pathlib import Path

import onnx

from export.io import read_graph

_SAME_IDS = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice"})


def table_sizes(path: Path) -> dict[str, int]:
    """Return, for each id input of an exported graph, the rows of the smallest constant table it indexes.

    Inputs that index no constant, or are used in arithmetic before indexing, have no entry.

    Raises:
        UgsepError: the file is missing or not an ONNX file.
    """
    graph = read_graph(path).graph
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    source = {i.name: i.name for i in graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _SAME_IDS and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == "DequantizeLinear" and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in tables and node.input[1] in source:
            if all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis"):
                name, rows = source[node.input[1]], tables[node.input[0]]
                found[name] = min(rows, found.get(name, rows))
    return found
