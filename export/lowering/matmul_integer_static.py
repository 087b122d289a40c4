"""int8 GEMMs with calibrated inputs: activations rounded to uint8 with one constant scale per tensor.

``MatMul(x, int8 weight) + bias`` becomes

    y = MatMulIntegerToFloat(QuantizeLinear(x, scale, zero), weight, scale, columns of the weight, zero, bias)

where ``scale`` and ``zero`` are the stamped range of the weight's inputs (``export.activations``). Rounding
depends on nothing but the value, so candidates stay independent. Compared with a scale per row (``matmul_integer``),
nothing is computed from the rows first, no product is scaled afterwards, and the bias is added inside the product.

A tensor is rounded once for all weights that multiply it with one range; if it is only a slice of another tensor, all
of whose slices are multiplied with that range, the whole is rounded, so that bytes are sliced instead of floats.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export import names
from export.activations import ActivationRange
from export.lowering.matmul_integer import column_scales, match_gemm
from export.lowering.nodes import Int8Weight, add_initializer, add_node, constant, take_over
from export.lowering.passes import Lowering, Pass, matches

_Rounded = dict[tuple[ir.Value, ActivationRange], ir.Value]


def multiply_calibrated_rows(lowering: Lowering) -> None:
    """Round the inputs of every matching MatMul whose weight has a range, and multiply them as integers."""
    graph = lowering.graph
    whole = {part: name for name, parts in lowering.parts.items() for part in parts}
    ranges: dict[ir.Node, ActivationRange] = {}
    weights: dict[ir.Node, Int8Weight] = {}
    for node, weight in matches(graph, match_gemm):
        name = str(weight.values.name)
        found = lowering.ranges.get(whole.get(name, name))
        if found is not None:
            ranges[node], weights[node] = found, weight
    rounded: _Rounded = {}
    for node, found in ranges.items():
        x = node.inputs[0]
        assert x is not None
        _multiply(graph, node, weights[node], found, _round(graph, node, x, found, ranges, rounded))
    done = {str(weight.values.name) for weight in weights.values()}
    lowering.record_fused(done)
    lowering.calibrated |= {whole.get(name, name) for name in done}
    lowering.model.opset_imports["com.microsoft"] = 1


#: Without a pattern: the products that it leaves are those of weights without a range.
MULTIPLY_CALIBRATED_ROWS = Pass("multiply calibrated int8 rows", multiply_calibrated_rows)


def _round(
    graph: ir.Graph,
    node: ir.Node,
    x: ir.Value,
    found: ActivationRange,
    ranges: dict[ir.Node, ActivationRange],
    rounded: _Rounded,
) -> ir.Value:
    """Return ``x`` as uint8, rounded before ``node``, which is the first to need it."""
    if (x, found) in rounded:
        return rounded[x, found]
    slicing = x.producer()
    if slicing is not None and _only_slices(slicing, found, ranges):
        source = slicing.inputs[0]
        assert source is not None
        values = _round(graph, node, source, found, ranges, rounded)
        again = ir.node("Split", [values, *slicing.inputs[1:]], slicing.attributes, num_outputs=len(slicing.outputs))
        node.prepend(again)
        for old, new in zip(slicing.outputs, again.outputs, strict=True):
            new.name, new.type = names.derived(old.name, "calibrated"), values.type
            rounded[old, found] = new
        return rounded[x, found]
    scale, zero = _constants(graph, found)
    others = sum(key[0] is x for key in rounded)  # it was rounded already, with other ranges
    name = names.derived(x.name, "calibrated")
    name = names.sliced(name, others) if others else name
    rounded[x, found] = add_node(node, "QuantizeLinear", [x, scale, zero], name=name, like=zero)
    return rounded[x, found]


def _only_slices(node: ir.Node, found: ActivationRange, ranges: dict[ir.Node, ActivationRange]) -> bool:
    """Whether a Split is read by nothing but products with this range."""
    if node.op_type != "Split" or node.domain != "":
        return False
    return all(
        ranges.get(use.node) == found and use.idx == 0 for value in node.outputs for use in value.uses()
    ) and not any(value.is_graph_output() for value in node.outputs)


def _constants(graph: ir.Graph, found: ActivationRange) -> tuple[ir.Value, ir.Value]:
    scale = np.array(found.scale, np.float32)
    return (
        add_initializer(graph, names.shared("range", f"{scale:.9g}"), scale),
        add_initializer(graph, names.shared("zero", found.zero), np.array(found.zero, np.uint8)),
    )


def _multiply(graph: ir.Graph, node: ir.Node, weight: Int8Weight, found: ActivationRange, rows: ir.Value) -> None:
    scale, zero = _constants(graph, found)
    inputs: list[ir.Value | None] = [rows, weight.values, scale, column_scales(graph, weight), zero]
    out = node.outputs[0]
    biased = _bias(node, weight.q.shape[-1])
    if biased is not None:
        add, bias = biased
        inputs += [None, bias]
        node, out = add, add.outputs[0]
    product = add_node(
        node,
        "MatMulIntegerToFloat",
        inputs,
        name=names.derived(out.name, "product"),
        like=scale,
        domain="com.microsoft",
    )
    take_over(out, product)


def _bias(node: ir.Node, columns: int) -> tuple[ir.Node, ir.Value] | None:
    """Return the Add of a constant [N] that alone reads a product, and the constant."""
    product = node.outputs[0]
    uses = tuple(product.uses())
    if len(uses) != 1 or product.is_graph_output():
        return None
    add = uses[0].node
    if add.op_type != "Add" or add.domain != "":
        return None
    other = add.inputs[1 - uses[0].idx]
    value = constant(other)
    return (add, other) if other is not None and value is not None and value.shape == (columns,) else None
