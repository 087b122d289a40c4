"""How many rows the embedding table behind each id input has: an id beyond it must be refused, not looked up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from engines.backends.contract import Array
from engines.backends.graph_io import read_graph
from graphs.base.errors import UgsepError

_SAME_IDS = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice"})


def table_sizes(path: Path) -> dict[str, int]:
    """Return input -> rows of the smallest constant table it is looked up in, of an exported graph.

    Inputs that are looked up in no constant, or computed with before they are, have no entry.

    Raises:
        UgsepError: the file is missing or no ONNX file.
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


def check_ids(side: str, given: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
    """Refuse an id that is no row of its table.

    Raises:
        UgsepError: names the feature, the id, and the largest one there is.
    """
    for name, rows in sizes.items():
        ids = given.get(name)
        if ids is None or ids.dtype != np.int64 or ids.size == 0:
            continue
        # Seen as unsigned a negative id is a huge one, so that one pass finds both; a single id needs no pass.
        sound = 0 <= ids.item() < rows if ids.size == 1 else ids.view(np.uint64).max() < rows
        if not sound:
            wrong = int(ids[(ids < 0) | (ids >= rows)].flat[0])
            raise UgsepError(
                f"{side} feature '{name}' has id {wrong}; its table has {rows} rows, so ids go from 0 to {rows - 1}"
            )
