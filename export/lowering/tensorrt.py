"""The form in which TensorRT keeps int8 weights: every int8 GEMM reads its weight directly as int8.

Two things make the compiler dequantize a whole weight in a separate kernel on every run: a Transpose right
before the GEMM, and two GEMMs that read the same rows (it would concatenate their weights first). So sibling
GEMMs are merged here, as int8, and a Transpose before a GEMM is kept out of it by an addition of zero, which
costs one pass over the activations, or nothing if the compiler fuses it into the kernel that made them.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import Int8Weight, add_initializer, add_node, constant, int8_weight, take_over
from export.lowering.passes import Lowering, Pass
from graphs.base.errors import UgsepError

#: The operator that multiplies rows by an int8 weight in our own kernel; a plugin of the same name runs it.
PLUGIN_NAMESPACE, PLUGIN_OP = "ugsep", "w8a16_gemm"

_FP16_MAX = 65504.0
_VIEWS = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze"})


def merge_siblings(lowering: Lowering) -> None:
    """Merge int8 GEMMs over the same rows into one GEMM and a Split.

    Exact: every output column keeps its own products, scale and bias.
    """
    graph = lowering.graph
    siblings: dict[tuple[ir.Value, tuple[int, ...]], list[tuple[ir.Node, Int8Weight]]] = defaultdict(list)
    for node in graph:
        weight = int8_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        rows = node.inputs[0] if weight is not None else None
        if weight is None or rows is None or weight.q.ndim not in (2, 3):
            continue
        columns = weight.q.shape[-1:] if weight.q.ndim == 2 else (weight.q.shape[0], 1, weight.q.shape[2])
        if weight.s.shape == columns and weight.axis == 1:
            siblings[rows, weight.q.shape[:-1]].append((node, weight))
    for (rows, _), group in siblings.items():
        if len({weight.values for _, weight in group}) == len(group) > 1:
            lowering.parts |= _merge(graph, rows, group)


def _merge(graph: ir.Graph, rows: ir.Value, group: list[tuple[ir.Node, Int8Weight]]) -> dict[str, tuple[str]]:
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
        take_over(node.outputs[0], part)
    return dict.fromkeys(weights, (name,))


def separate_transposes(lowering: Lowering) -> None:
    """Keep a Transpose from being fused into the GEMM after it: add zero in between."""
    graph = lowering.graph
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


def use_plugin(lowering: Lowering) -> None:
    """Replace the MatMul of each int8 weight named in ``plugin`` by one node of ours: rows, int8 weight, scales."""
    weights = {*lowering.plugin, *(whole for name in lowering.plugin for whole in lowering.parts.get(name, ()))}
    if weights:
        lowering.model.opset_imports[PLUGIN_NAMESPACE] = 1
    for node in list(lowering.graph):
        weight = int8_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        rows = node.inputs[0] if weight is not None else None
        if weight is None or rows is None or str(weight.values.name) not in weights:
            continue
        # The parser finds a plugin by the operator's name and these two attributes.
        attributes = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": "1"}
        made = ir.node(PLUGIN_OP, [rows, weight.values, weight.scale], attributes, domain=PLUGIN_NAMESPACE)
        made.name = node.name
        node.prepend(made)
        take_over(node.outputs[0], made.outputs[0])


def _is_transposed(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Transpose"


def fold_int8(lowering: Lowering) -> None:
    """Replace every dequantized int8 constant by the float constant it stands for."""
    graph = lowering.graph
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


def to_fp16(lowering: Lowering) -> None:
    """Type every FP32 tensor, input and output FP16.

    Raises:
        UgsepError: a value does not fit FP16.
    """
    graph = lowering.graph
    for value in list(graph.initializers.values()):
        array = constant(value)
        if array is None or array.dtype != np.float32:
            continue
        if array.size and not np.abs(array).max() <= _FP16_MAX:
            raise UgsepError(f"{lowering.source}: '{value.name}' has values beyond FP16; build fp32 instead")
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


def name_gemms(lowering: Lowering) -> None:
    """Name GEMMs and the nodes that dequantize their weights after the weight, all others after their position."""
    for index, node in enumerate(lowering.graph):
        weight = int8_weight(node.outputs[0])
        if weight is not None:
            node.name = names.dequantize_node(weight.values.name)
            continue
        read = int8_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        node.name = names.numbered_node(index, node.op_type) if read is None else names.gemm_node(read.values.name)


MERGE_SIBLINGS = Pass("merge siblings", merge_siblings)
SEPARATE_TRANSPOSES = Pass("separate transposes", separate_transposes)
NAME_GEMMS = Pass("name GEMMs", name_gemms)
USE_PLUGIN = Pass("use the plugin", use_plugin)
FOLD_INT8 = Pass("fold int8 weights", fold_int8)
TO_FP16 = Pass("to FP16", to_fp16)
