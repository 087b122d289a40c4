"""int8 GEMMs for many rows: activations rounded to int8 with one scale per row, then one integer product.

``MatMul(x, int8 weight)`` becomes

    scale = max(|x|, axis=-1) / 127                            # [.., M, 1]
    y     = MatMulIntegerToFloat(round(x / scale), weight) * scale

A row's scale depends on that row alone, so candidates stay independent of each other (one scale for the whole tensor,
as dynamic quantization usually has, would let other candidates change a score). The runtime multiplies uint8 by int8
with 32-bit sums, so int8 activations are stored with 128 added.

Rounding is one QuantizeLinear with blocks as long as a row, which divides by each row's scale. Rows are rounded once
for all weights that multiply them; rows that are only split into feature tokens first are rounded before the split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import Int8Weight, add_initializer, add_node, int8_weight, ints, rank, take_over
from export.lowering.passes import Lowering, Pass, matches

_LARGEST = 127.0
_ZERO = 128
#: The scale of a row of zeros: small, but its reciprocal is still finite.
_SMALLEST = 1e-30
#: Quantizing the scales with a step this large yields the zero point itself, once per row.
_BEYOND_SCALES = 3e38


@dataclass(frozen=True)
class _Rows:
    """Rows as uint8 (value + 128), with their scales [.., M, 1]."""

    values: ir.Value
    scale: ir.Value


def match_gemm(node: ir.Node) -> Int8Weight | str:
    """Match MatMul(x [.., M, K], int8 weight [K, N] or [T, K, N]).

    Scales are one per column ([N], axis 1; [T, 1, N], axis 1, block_size K) or, of a matrix, one for all.
    """
    weight = int8_weight(node.inputs[1]) if node.op_type == "MatMul" and node.domain == "" else None
    if weight is None or node.inputs[0] is None:
        return ""
    if weight.q.ndim == 2:
        return weight if weight.axis in (1, -1) else "scales are not per column"
    tokens, _, n = weight.q.shape if weight.q.ndim == 3 else (0, 0, 0)
    per_column = weight.s.shape == (tokens, 1, n) and weight.axis in (1, -2)
    return weight if per_column else "scales are not per column of a feature token"


def column_scales(graph: ir.Graph, weight: Int8Weight) -> ir.Value:
    """Return the scales of a matched weight's columns: [N], or [T, 1, N] of feature tokens."""
    if weight.q.ndim != 2:
        return weight.scale
    scales = np.broadcast_to(weight.s.reshape(-1), weight.q.shape[1:])
    return add_initializer(graph, names.derived(weight.scale.name, "columns"), scales)


def multiply_int8_rows(lowering: Lowering) -> None:
    """Round the rows of every matching MatMul and multiply them as integers."""
    graph = lowering.graph
    quantized: dict[ir.Value, _Rows] = {}
    done = set()
    for node, weight in matches(graph, match_gemm):
        x = node.inputs[0]
        assert x is not None
        if x not in quantized:
            quantized |= _quantize_tokens(graph, x) or {x: _quantize(graph, node, x, weight.q.shape[-2])}
        _multiply(graph, node, weight, quantized[x])
        done.add(str(weight.values.name))
    lowering.record_fused(done)
    lowering.model.opset_imports["com.microsoft"] = 1


MULTIPLY_INT8_ROWS = Pass("multiply int8 rows", multiply_int8_rows, match_gemm)


def _quantize_tokens(graph: ir.Graph, x: ir.Value) -> dict[ir.Value, _Rows]:
    """Round rows before a Split into feature tokens, if ``x`` is one of them and all meet int8 weights only."""
    split = x.producer()
    source = None if split is None else split.inputs[0]
    if (
        split is None
        or source is None
        or split.op_type != "Split"
        or ints(split, "axis", 0) != 0
        or rank(source) != 2
    ):
        return {}
    tokens = list(split.outputs)
    width = None if source.shape is None else source.shape[1]
    if not isinstance(width, int) or not all(_meets_int8(use) for token in tokens for use in token.consumers()):
        return {}
    rows = _quantize(graph, split, source, width)
    values, scales = (
        ir.node("Split", [whole], {"axis": 0, "num_outputs": len(tokens)}, num_outputs=len(tokens))
        for whole in (rows.values, rows.scale)
    )
    split.prepend([values, scales])
    for token, value, scale in zip(tokens, values.outputs, scales.outputs, strict=True):
        value.name, value.type = names.derived(token.name, "rounded"), rows.values.type
        scale.name, scale.type = names.derived(token.name, "scale"), rows.scale.type
    return {token: _Rows(*pair) for token, *pair in zip(tokens, values.outputs, scales.outputs, strict=True)}


def _meets_int8(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and node.domain == "" and int8_weight(node.inputs[1]) is not None


def _quantize(graph: ir.Graph, before: ir.Node, x: ir.Value, width: int) -> _Rows:
    name = str(x.name)
    axes = add_initializer(graph, names.shared("rows", "axes"), np.array([-1], np.int64))
    size = add_node(before, "Abs", [x], name=names.derived(name, "size"))
    maximum = add_node(before, "ReduceMax", [size, axes], {"keepdims": 1}, name=names.derived(name, "maximum"))
    # With as many axes as the scales, or the runtime broadcasts value by value: 20 us instead of 1 for 2048 rows.
    axes_of_scale = (1,) * (rank(x) or 0)
    largest, smallest = (
        add_initializer(
            graph, names.shared("rows", end, len(axes_of_scale)), np.full(axes_of_scale, number, np.float32)
        )
        for end, number in (("inverse", 1 / _LARGEST), ("smallest", _SMALLEST))
    )
    step = add_node(before, "Mul", [maximum, largest], name=names.derived(name, "step"))
    scale = add_node(before, "Max", [step, smallest], name=names.derived(name, "scale"))
    zero = _constant(graph, "zero", np.uint8(_ZERO))
    beyond = _constant(graph, "beyond", np.float32(_BEYOND_SCALES))
    zeros = add_node(before, "QuantizeLinear", [scale, beyond, zero], name=names.derived(name, "zeros"), like=zero)
    by_row = {"axis": -1, "block_size": width}
    values = add_node(
        before, "QuantizeLinear", [x, scale, zeros], by_row, name=names.derived(name, "rounded"), like=zero
    )
    return _Rows(values, scale)


def _multiply(graph: ir.Graph, node: ir.Node, weight: Int8Weight, rows: _Rows) -> None:
    columns = column_scales(graph, weight)
    one, zero = _constant(graph, "one", np.float32(1.0)), _constant(graph, "zero", np.uint8(_ZERO))
    out = node.outputs[0]
    name = str(out.name)
    inputs = [rows.values, weight.values, one, columns, zero]
    product = add_node(
        node,
        "MatMulIntegerToFloat",
        inputs,
        name=names.derived(name, "product"),
        like=rows.scale,
        domain="com.microsoft",
    )
    take_over(out, add_node(node, "Mul", [product, rows.scale], name=name, like=out))


def _constant(graph: ir.Graph, name: str, value: np.float32 | np.uint8) -> ir.Value:
    return add_initializer(graph, names.shared("rows", name), np.array(value))
