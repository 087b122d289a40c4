"""Rewrite an ONNX graph: float weights become int8 or FP16 constants in a shared file of blobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export import names
from quant.arrays import Floats
from quant.graph.gemms import name_of, tensor_of


@dataclass(frozen=True)
class Encoded:
    """The location of a weight's constant, and how it is dequantized.

    ``scale`` is float32 in the shape the graph holds: [N], [K/block, N], [T, K/block, N], or [V] for a table; None
    for an FP16 constant. ``axis`` and ``block`` are DequantizeLinear's attributes, ``block`` 0 if it has none.
    """

    location: str
    offset: int
    length: int
    scale: Floats | None = None
    axis: int = 0
    block: int = 0


def scale_of_matmul(scale: Floats, inputs: int) -> tuple[Floats, int, int]:
    """Return (scale, axis, block_size) of the canonical pattern for a scale [B, N] or [T, B, N] of K inputs."""
    blocks = scale.shape[-2]
    if scale.ndim == 2 and blocks == 1:
        return scale[0], 1, 0
    return scale, scale.ndim - 2, inputs // blocks


def encode_weights(model: ir.Model, encoded: Mapping[str, Encoded]) -> None:
    """Replace the named float initializers in place.

    ``W`` keeps its name and becomes int8 with ``W.scale``, read by DequantizeLinear into ``W.dequantized``; an FP16
    constant is read by Cast into ``W.float``. The new node is inserted right before the first reader, so that few
    dequantized weights are alive at once.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if name not in encoded:
            continue
        entry = encoded[name]
        dtype = ir.DataType.INT8 if entry.scale is not None else ir.DataType.FLOAT16
        shape = ir.Shape(tensor_of(value).shape.numpy())
        value.const_value = ir.ExternalTensor(
            entry.location, entry.offset, entry.length, dtype, shape=shape, name=name
        )
        value.type = value.shape = None  # declared as float
        if entry.scale is not None:
            scale = ir.Tensor(np.ascontiguousarray(entry.scale), name=names.derived(name, "scale"))
            graph.register_initializer(ir.Value(name=scale.name, const_value=scale))
    decoded: dict[str, ir.Value] = {}
    for node in list(graph):
        for position, source in enumerate(node.inputs):
            if source is None or source.name is None or source.name not in encoded:
                continue
            if source.name not in decoded:
                decode = _decode(graph, source, encoded[source.name])
                graph.insert_before(node, decode)
                decoded[source.name] = decode.outputs[0]
            node.replace_input_with(position, decoded[source.name])


def _decode(graph: ir.Graph, weight: ir.Value, entry: Encoded) -> ir.Node:
    name = name_of(weight)
    if entry.scale is None:
        output = ir.Value(name=names.derived(name, "float"))
        return ir.node(
            "Cast", [weight], {"to": ir.DataType.FLOAT}, name=names.step_node(name, "cast"), outputs=[output]
        )
    attributes = {"axis": entry.axis, **({"block_size": entry.block} if entry.block else {})}
    return ir.node(
        "DequantizeLinear",
        [weight, graph.initializers[names.derived(name, "scale")]],
        attributes,
        name=names.step_node(name, "dequantize"),
        outputs=[ir.Value(name=names.derived(name, "dequantized"))],
    )
