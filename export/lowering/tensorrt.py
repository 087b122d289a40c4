"""The form TensorRT compiles int8 weights best in: every int8 GEMM reads its weight straight from int8.

Two things make the compiler dequantize a whole weight in a kernel of its own, on every run: a Transpose right
before the GEMM, and two GEMMs that read the same rows (it would concatenate their weights first). So sibling
GEMMs are merged here, as int8, and a Transpose before a GEMM is kept out of it by an addition of zero, which
costs one pass over the activations, or nothing where the compiler puts it in the kernel that made them.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import Int8Weight, add_initializer, add_node, constant, int8_weight
from export.lowering.passes import LoweredGraph, read_inferred, write_model
from graphs.base.errors import UgsepError

#: "int8": as quantized. "folded": int8 weights as FP16 constants, the twin that sizes are compared with.
#: "fp16": an FP32-typed graph made FP16-typed.
Weights = Literal["int8", "folded", "fp16"]

#: The operator that multiplies rows by an int8 weight in our own kernel; a plugin of the same name runs it.
PLUGIN_NAMESPACE, PLUGIN_OP = "ugsep", "w8a16_gemm"

_HALF_MAX = 65504.0
_VIEWS = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze"})


def lower_for_tensorrt(
    source: Path, destination: Path, weights: Weights = "int8", plugin: frozenset[str] = frozenset()
) -> LoweredGraph:
    """Write ``source`` for TensorRT, strongly typed; the int8 weights named in ``plugin`` run in our own kernel.

    The node that dequantizes weight ``w`` is called ``int8:w``, the GEMM that reads it ``gemm:w``, so that layers of
    the compiled engine can be traced back; ``parts`` maps an int8 weight to the merged one that holds it.

    Raises:
        UgsepError: ``source`` is missing or broken, or a value does not fit FP16.
    """
    model = read_inferred(source)
    merged: dict[str, str] = {}
    if weights == "fp16":
        _to_half(model, source)
    elif weights == "folded":
        _fold(model.graph)
    else:
        merged = merge_siblings(model.graph)
        _separate_transposes(model.graph)
    _name_gemms(model.graph)
    if plugin:
        _use_plugin(model.graph, plugin | {merged[name] for name in plugin if name in merged})
        model.opset_imports[PLUGIN_NAMESPACE] = 1
    write_model(model, destination)
    return LoweredGraph(destination, {name: (whole,) for name, whole in merged.items()})


def merge_siblings(graph: ir.Graph) -> dict[str, str]:
    """Merge int8 GEMMs over the same rows into one GEMM and a Split; return weight -> merged weight.

    Exact: every output column keeps its own products, scale and bias.
    """
    siblings: dict[tuple[ir.Value, tuple[int, ...]], list[tuple[ir.Node, Int8Weight]]] = defaultdict(list)
    for node in graph:
        weight = int8_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        rows = node.inputs[0] if weight is not None else None
        if weight is None or rows is None or weight.q.ndim not in (2, 3):
            continue
        columns = weight.q.shape[-1:] if weight.q.ndim == 2 else (weight.q.shape[0], 1, weight.q.shape[2])
        if weight.s.shape == columns and weight.axis == 1:
            siblings[rows, weight.q.shape[:-1]].append((node, weight))
    merged: dict[str, str] = {}
    for (rows, _), group in siblings.items():
        if len({weight.values for _, weight in group}) == len(group) > 1:
            merged |= _merge(graph, rows, group)
    return merged


def _merge(graph: ir.Graph, rows: ir.Value, group: list[tuple[ir.Node, Int8Weight]]) -> dict[str, str]:
    first = group[0][0]
    weights = [str(weight.values.name) for _, weight in group]
    name = names.merged(weights)
    q = add_initializer(graph, name, np.concatenate([weight.q for _, weight in group], axis=-1))
    s = add_initializer(
        graph, names.derived(name, "scale"), np.concatenate([weight.s for _, weight in group], axis=-1)
    )
    attributes = {"axis": 1} if group[0][1].q.ndim == 2 else {"axis": 1, "block_size": group[0][1].q.shape[1]}
    floats = add_node(first, "DequantizeLinear", [q, s], attributes, name=names.derived(name, "float"), like=s)
    product = add_node(first, "MatMul", [rows, floats], name=names.derived(name, "product"))
    sizes = np.array([weight.q.shape[-1] for _, weight in group], dtype=np.int64)
    split = ir.node(
        "Split",
        [product, add_initializer(graph, names.derived(name, "sizes"), sizes)],
        {"axis": -1},
        num_outputs=len(group),
    )
    first.prepend(split)
    for (node, _), part in zip(group, split.outputs, strict=True):
        out = node.outputs[0]
        part.name, out.name = out.name, names.derived(out.name, "before")
        part.type, part.shape = out.type, out.shape
        ir.convenience.replace_all_uses_with(out, part, replace_graph_outputs=True)
    return dict.fromkeys(weights, name)


def _separate_transposes(graph: ir.Graph) -> None:
    zeros: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        weight = int8_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        rows = node.inputs[0] if weight is not None else None
        if weight is None or rows is None or not rows.uses() or not _is_transposed(rows):
            continue
        if rows not in zeros:
            zero = add_initializer(graph, names.shared("zero"), np.zeros((1,) * weight.q.ndim, weight.s.dtype))
            zeros[rows] = add_node(node, "Add", [rows, zero], name=names.derived(rows.name, "separate"))
            zeros[rows].shape = rows.shape
        node.replace_input_with(0, zeros[rows])


def _use_plugin(graph: ir.Graph, weights: frozenset[str]) -> None:
    """Replace the MatMul of each named int8 weight by one node of the plugin: rows, int8 weight, scales."""
    for node in list(graph):
        weight = int8_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        rows = node.inputs[0] if weight is not None else None
        if weight is None or rows is None or str(weight.values.name) not in weights:
            continue
        # The parser finds a plugin by the operator's name and these two attributes.
        attributes = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": "1"}
        made = ir.node(PLUGIN_OP, [rows, weight.values, weight.scale], attributes, domain=PLUGIN_NAMESPACE)
        made.name = node.name
        node.prepend(made)
        out, result = node.outputs[0], made.outputs[0]
        result.name, out.name = out.name, names.derived(out.name, "before")
        result.type, result.shape = out.type, out.shape
        ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)


def _is_transposed(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Transpose"


def _fold(graph: ir.Graph) -> None:
    """Replace every dequantized int8 constant by the float constant it stands for."""
    for node in list(graph):
        weight = int8_weight(node.outputs[0])
        if weight is None:
            continue
        floats = weight.q.astype(weight.s.dtype)
        scale = weight.s
        if scale.ndim == 1 and weight.q.ndim > 1:
            scale = scale.reshape([-1 if axis == weight.axis % weight.q.ndim else 1 for axis in range(weight.q.ndim)])
        out = node.outputs[0]
        folded = add_initializer(graph, names.derived(weight.values.name, "folded"), floats * scale)
        ir.convenience.replace_all_uses_with(out, folded, replace_graph_outputs=True)


def _to_half(model: ir.Model, source: Path) -> None:
    """Type every FP32 tensor, input and output FP16, in place."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        array = constant(value)
        if array is None or array.dtype != np.float32:
            continue
        if array.size and not np.abs(array).max() <= _HALF_MAX:
            raise UgsepError(f"{source}: '{value.name}' has values beyond FP16; build fp32 instead")
        value.const_value = ir.tensor(array.astype(np.float16), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    values = [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]
    for value in values:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in graph:
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)


def _name_gemms(graph: ir.Graph) -> None:
    for index, node in enumerate(graph):
        weight = int8_weight(node.outputs[0])
        if weight is not None:
            node.name = names.dequantize_node(weight.values.name)
            continue
        read = int8_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        node.name = names.numbered_node(index, node.op_type) if read is None else names.gemm_node(read.values.name)
