"""The edit of the ONNX graph: a float weight becomes an int8 or FP16 constant in a shared file of blobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from export import names
from quant.arrays import Floats


@dataclass(frozen=True)
class Encoded:
    """Where a weight's constant lies and how it is dequantized.

    ``scale`` is float32 in the shape the graph holds: [N], [K/block, N], [T, K/block, N], or [V] for a table; None
    for an FP16 constant. ``axis`` and ``block`` are DequantizeLinear's attributes, ``block`` 0 where it has none.
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


def encode_weights(model: onnx.ModelProto, encoded: Mapping[str, Encoded]) -> None:
    """Replace the named float initializers in place.

    ``W`` keeps its name and becomes int8 with ``W.scale``, read by DequantizeLinear into ``W.dequantized``; an FP16
    constant is read by Cast into ``W.float``. The new node stands right before the first reader, so that few
    dequantized weights are alive at once.
    """
    graph = model.graph
    for tensor in list(graph.initializer):
        if tensor.name not in encoded:
            continue
        entry = encoded[tensor.name]
        data_type = TensorProto.INT8 if entry.scale is not None else TensorProto.FLOAT16
        tensor.CopyFrom(_external(tensor.name, data_type, tuple(tensor.dims), entry))
        if entry.scale is not None:
            scale = np.ascontiguousarray(entry.scale)
            graph.initializer.append(numpy_helper.from_array(scale, names.derived(tensor.name, "scale")))
    # Exporters also declare initializers as value_info; those of rewritten weights would claim the old type.
    declared = [v for v in graph.value_info if v.name not in encoded]
    kept = [ValueInfoProto.FromString(v.SerializeToString()) for v in declared]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    nodes: list[NodeProto] = []
    decoded: dict[str, str] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in encoded:
                continue
            if name not in decoded:
                nodes.append(_decode(name, encoded[name]))
                decoded[name] = nodes[-1].output[0]
            node.input[position] = decoded[name]
        nodes.append(node)
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _decode(name: str, entry: Encoded) -> NodeProto:
    if entry.scale is None:
        out = names.derived(name, "float")
        return helper.make_node("Cast", [name], [out], name=names.step_node(name, "cast"), to=TensorProto.FLOAT)
    attributes: dict[str, Any] = {"axis": entry.axis, **({"block_size": entry.block} if entry.block else {})}
    return helper.make_node(
        "DequantizeLinear",
        [name, names.derived(name, "scale")],
        [names.derived(name, "dequantized")],
        name=names.step_node(name, "dequantize"),
        **attributes,
    )


def _external(name: str, data_type: int, dims: tuple[int, ...], entry: Encoded) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", entry.location), ("offset", entry.offset), ("length", entry.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
