"""What the lowering passes share: adding a node or an initializer, and recognising int8 weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export import names


def add_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str,
    like: ir.Value | None = None,
    domain: str = "",
) -> ir.Value:
    """Insert a node before another one and return its only output, typed as ``like`` (else as its first input)."""
    node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain)
    out = node.outputs[0]
    model = like or next(value for value in inputs if value is not None)
    out.name = name
    out.type = model.type
    before.prepend(node)
    return out


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Give ``new`` the name, type, shape and readers of ``old``, and rename ``old``."""
    name, old.name = old.name, names.derived(old.name, "before")
    new.name, new.type, new.shape = name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Return the initializer of that name, registering it on the first call."""
    if name in graph.initializers:
        return graph.initializers[name]
    # ascontiguousarray makes a scalar one-dimensional.
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return an initializer's array (memory-mapped if external), None for anything else."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def rank(value: ir.Value) -> int | None:
    """Return the rank of a value, None if unknown."""
    return None if value.shape is None else len(value.shape)


def ints(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def swaps_first_axes(node: ir.Node | None) -> bool:
    """Return whether this is the Transpose that swaps the first two of three axes, rows and feature tokens."""
    perm = node.attributes.get("perm") if node is not None and node.op_type == "Transpose" else None
    return perm is not None and tuple(perm.as_ints()) == (1, 0, 2)


@dataclass(frozen=True)
class Int8Weight:
    """A weight stored as int8: DequantizeLinear(values, scale), symmetric, no zero point.

    ``q`` and ``s`` are the arrays behind ``values`` and ``scale``, memory-mapped if external.
    """

    values: ir.Value
    scale: ir.Value
    q: NDArray[np.int8]
    s: NDArray[Any]
    axis: int


def int8_weight(value: ir.Value | None) -> Int8Weight | None:
    """Return the int8 weight behind a value, None if the value is not a dequantized int8 initializer."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    values, scale = node.inputs[0], node.inputs[1]
    q, s = constant(values), constant(scale)
    if values is None or scale is None or q is None or s is None:
        return None
    if q.dtype != np.int8 or (len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    return Int8Weight(values, scale, q, s, ints(node, "axis", 1))


def fp16_weight(value: ir.Value | None) -> tuple[ir.Value, NDArray[np.float16]] | None:
    """Return the FP16 initializer behind a value that casts it to FP32, with its array; None for anything else."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Cast" or node.domain != "" or ints(node, "to", 0) != ir.DataType.FLOAT:
        return None
    stored = node.inputs[0]
    array = constant(stored)
    return None if stored is None or array is None or array.dtype != np.float16 else (stored, array)
