"""Products with one position: element-wise, in place of one tiny GEMM per candidate and head.

Where a candidate has one token, its attention to itself is q k^T of one row and one column, and that weight times one
row of values. A runtime multiplies such matrices one by one: 1024 of them for 256 candidates and 4 heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import add_initializer, add_node, int8_weight, take_over
from export.lowering.passes import Lowering, Pass, matches

__all__ = ["MULTIPLY_POSITIONS", "match_position"]


@dataclass(frozen=True)
class Position:
    """A product [.., 1, K] [.., K, 1] (``sums``), or [.., 1, 1] [.., 1, M], which sums nothing."""

    left: ir.Value
    right: ir.Value
    sums: bool


def match_position(node: ir.Node) -> Position | str:
    """Return the product of data with one position, or why it is none."""
    if node.op_type != "MatMul" or node.domain != "":
        return ""
    left, right = node.inputs
    if left is None or right is None or left.shape is None or right.shape is None:
        return "its shapes are unknown"
    if len(left.shape) != len(right.shape) or len(left.shape) < 3:
        return ""
    if any(value.is_initializer() or int8_weight(value) is not None for value in (left, right)):
        return ""
    if left.shape[-2] != 1 or (left.shape[-1] != 1 and right.shape[-1] != 1):
        return ""
    return Position(left, right, left.shape[-1] != 1)


def _multiply(lowering: Lowering) -> None:
    graph = lowering.graph
    for node, found in matches(graph, match_position):
        out = node.outputs[0]
        right = _turned(node, found.right) if found.sums else found.right
        product = add_node(node, "Mul", [found.left, right], name=names.derived(out.name, "product"), like=out)
        if found.sums:
            axes = add_initializer(graph, names.shared("axes", -1), np.array([-1], np.int64))
            product = add_node(
                node, "ReduceSum", [product, axes], {"keepdims": 1}, name=names.derived(out.name, "sum"), like=out
            )
        take_over(out, product)
        graph.remove(node, safe=True)


def _turned(before: ir.Node, value: ir.Value) -> ir.Value:
    """Return [.., K, 1] as [.., 1, K], by the transpose that it comes from if there is one."""
    shape = value.shape
    assert shape is not None
    order = list(range(len(shape)))
    producer, source = value.producer(), value
    if producer is not None and producer.op_type == "Transpose" and "perm" in producer.attributes:
        assert producer.inputs[0] is not None
        source, order = producer.inputs[0], list(producer.attributes["perm"].as_ints())
    order[-2:] = order[-1], order[-2]
    if order == sorted(order):
        return source
    turned = add_node(
        before,
        "Transpose",
        [source],
        {"perm": order},
        name=names.derived(before.outputs[0].name, "turned"),
        like=value,
    )
    turned.shape = ir.Shape([*shape[:-2], shape[-1], shape[-2]])
    return turned


MULTIPLY_POSITIONS = Pass("multiply single positions", _multiply, match_position)
