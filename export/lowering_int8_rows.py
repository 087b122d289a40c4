"""int8 GEMMs for many rows: activations rounded to int8 with one scale per row, then one integer product.

``MatMul(x, int8 weight)`` becomes

    scale = max(|x|, axis=-1) / 127                            # [.., M, 1]
    y     = MatMulIntegerToFloat(round(x / scale), weight) * scale

A row's scale depends on that row alone, so candidates stay independent of each other (one scale for the whole tensor,
as dynamic quantization usually has it, would let the other candidates change a score). The runtime multiplies uint8
by int8 with 32-bit sums; int8 activations are stored with 128 added, as that is the form its kernels take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.lowering_nodes import Int8Weight, add_initializer, add_node, int8_weight

_LARGEST = 127.0
_ZERO = 128
#: A row of zeros has no scale of its own; anything that neither overflows nor divides by zero serves.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class _Rows:
    """Rows as uint8 (value + 128), with their scales [.., M, 1]."""

    values: ir.Value
    scale: ir.Value


def multiply_int8_rows(graph: ir.Graph) -> tuple[str, ...]:
    """Rewrite every MatMul(x [.., M, K], int8 weight [K, N]); return the weights' names.

    Scales are one per column ([N], axis 1) or one for all. Weights of another rank are left as they are.
    """
    quantized: dict[ir.Value, _Rows] = {}
    done: list[str] = []
    for node in list(graph):
        if node.op_type != "MatMul" or node.domain != "":
            continue
        x, weight = node.inputs[0], int8_weight(node.inputs[1])
        if x is None or weight is None or weight.q.ndim != 2 or weight.axis not in (1, -1):
            continue
        if x not in quantized:
            quantized[x] = _quantize(graph, node, x)
        _multiply(graph, node, weight, quantized[x])
        done.append(str(weight.values.name))
    return tuple(dict.fromkeys(done))


def _quantize(graph: ir.Graph, before: ir.Node, x: ir.Value) -> _Rows:
    name = str(x.name)
    axes = add_initializer(graph, "lowering.rows.axes", np.array([-1], np.int64))
    size = add_node(before, "Abs", [x], name=f"{name}.size")
    maximum = add_node(before, "ReduceMax", [size, axes], {"keepdims": 1}, name=f"{name}.maximum")
    largest = _constant(graph, "largest", np.float32(_LARGEST))
    smallest = _constant(graph, "smallest", np.float32(_SMALLEST))
    positive = add_node(before, "Max", [maximum, smallest], name=f"{name}.positive")
    scale = add_node(before, "Div", [positive, largest], name=f"{name}.scale")
    # One division per row and a product per value: a division per value takes several times as long.
    inverse = add_node(before, "Div", [largest, positive], name=f"{name}.inverse", like=x)
    scaled = add_node(before, "Mul", [x, inverse], name=f"{name}.scaled")
    one, zero = _constant(graph, "one", np.float32(1.0)), _constant(graph, "zero", np.uint8(_ZERO))
    values = add_node(before, "QuantizeLinear", [scaled, one, zero], name=f"{name}.rounded", like=zero)
    return _Rows(values, scale)


def _multiply(graph: ir.Graph, node: ir.Node, weight: Int8Weight, rows: _Rows) -> None:
    n = weight.q.shape[1]
    scales = np.broadcast_to(weight.s.reshape(-1), (n,))
    columns = add_initializer(graph, f"{weight.scale.name}.columns", scales)
    one, zero = _constant(graph, "one", np.float32(1.0)), _constant(graph, "zero", np.uint8(_ZERO))
    out = node.outputs[0]
    name = str(out.name)
    out.name = f"{name}.before"
    inputs = [rows.values, weight.values, one, columns, zero]
    product = add_node(
        node, "MatMulIntegerToFloat", inputs, name=f"{name}.product", like=rows.scale, domain="com.microsoft"
    )
    whole = add_node(node, "Mul", [product, rows.scale], name=name, like=out)
    whole.shape = out.shape
    ir.convenience.replace_all_uses_with(out, whole, replace_graph_outputs=True)


def _constant(graph: ir.Graph, name: str, value: np.float32 | np.uint8) -> ir.Value:
    return add_initializer(graph, f"lowering.rows.{name}", np.array(value))
