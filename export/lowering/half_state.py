"""User state as float16: the user graph rounds what it returns, the item graph reads that as float32 again.

Nothing is computed in float16. What crosses the cut takes half the bytes, in a cache and on its way to the engine.
"""

from __future__ import annotations

import onnx_ir as ir

from export import names
from export.lowering.passes import Lowering, Pass
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

_USERS = "users"


def halve_state(lowering: Lowering) -> None:
    """Return float32 state of a user graph, and take that of an item graph, as float16; ids and flags stay.

    Raises:
        UgsepError: the graph is not one side of a split model.
    """
    graph = lowering.graph
    if any(value.name == USER_INDEX for value in graph.inputs):
        for value in [v for v in graph.inputs if _is_state(v)]:
            _widen(graph, value)
        return
    state = [v for v in graph.outputs if _is_state(v)]
    if not graph.outputs or any(not _has_users(v) for v in graph.outputs):
        raise UgsepError(f"'{lowering.source}' is neither a user nor an item graph; only these have user state")
    for value in state:
        _narrow(graph, value)


HALVE_STATE = Pass("halve the state", halve_state)


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    """Read an input as float16."""
    if not value.uses():
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        return
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    whole = node.outputs[0]
    whole.name, whole.type, whole.shape = names.derived(value.name, "float"), value.type, value.shape
    ir.convenience.replace_all_uses_with(value, whole)
    node.replace_input_with(0, value)
    graph.insert_before(graph[0], node)
    value.type = ir.TensorType(ir.DataType.FLOAT16)


def _narrow(graph: ir.Graph, value: ir.Value) -> None:
    """Return an output as float16, under its name."""
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16})
    half = node.outputs[0]
    half.shape = value.shape
    position = list(graph.outputs).index(value)
    half.name, value.name = value.name, names.derived(value.name, "float")
    half.type = ir.TensorType(ir.DataType.FLOAT16)
    graph.append(node)
    graph.outputs[position] = half


def _has_users(value: ir.Value) -> bool:
    first = value.shape[0] if value.shape is not None and len(value.shape) else None
    return isinstance(first, ir.SymbolicDim) and first.value == _USERS


def _is_state(value: ir.Value) -> bool:
    return _has_users(value) and value.dtype == ir.DataType.FLOAT
