"""RMSNorm in one node, for ONNX Runtime: its own fusion misses a norm whose input it transposes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.version_converter import convert_version

from export import names
from export.lowering.nodes import add_initializer, add_node, constant, ints, take_over
from export.lowering.passes import Lowering, Pass, matches

#: The first opset with RMSNormalization, and the IR version that came with it.
_OPSET, _IR_VERSION = 23, 11


@dataclass(frozen=True)
class _Norm:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis of ``x``, with ``scale`` a constant [1, .., D]."""

    x: ir.Value
    scale: ir.Value
    epsilon: float


def match_rms_norm(node: ir.Node) -> _Norm | str:
    """Match the last node, Mul, of an RMSNorm in float32 whose steps nothing else reads."""
    if node.op_type != "Mul" or node.domain != "":
        return ""
    for position in (0, 1):
        division, scale = _step(node.inputs[position], "Div"), node.inputs[1 - position]
        root = None if division is None else _step(division.inputs[1], "Sqrt")
        total = None if root is None else _step(root.inputs[0], "Add")
        if division is None or total is None:
            continue
        x = division.inputs[0]
        for which in (0, 1):
            mean, epsilon = _step(total.inputs[which], "ReduceMean"), constant(total.inputs[1 - which])
            if mean is not None and epsilon is not None and x is not None and _means_squares(mean, x):
                return _norm(x, scale, epsilon)
    return ""


def fuse_rms_norms(lowering: Lowering) -> None:
    """Replace every RMSNorm by ``RMSNormalization``; the model's opset rises to the first that has it."""
    found = False
    for node, norm in matches(lowering.graph, match_rms_norm):
        found = True
        array = constant(norm.scale)
        assert array is not None
        name = names.derived(norm.scale.name, "vector")
        scale = add_initializer(lowering.graph, name, array.reshape(-1)) if array.ndim > 1 else norm.scale
        out = node.outputs[0]
        attributes = {"axis": -1, "epsilon": norm.epsilon, "stash_type": 1}
        whole = add_node(
            node, "RMSNormalization", [norm.x, scale], attributes, name=names.derived(out.name, "norm"), like=norm.x
        )
        take_over(out, whole)
        lowering.graph.remove(node, safe=True)
    if found and lowering.model.opset_imports.get("", _OPSET) < _OPSET:
        convert_version(lowering.model, _OPSET)
        lowering.model.ir_version = max(lowering.model.ir_version, _IR_VERSION)


FUSE_RMS_NORMS = Pass("fuse RMSNorms", fuse_rms_norms, match_rms_norm)


def _step(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node of this type behind a value that only the norm reads."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != op_type or node.domain != "":
        return None
    return None if value.is_graph_output() or len(value.uses()) != 1 else node


def _means_squares(mean: ir.Node, x: ir.Value) -> bool:
    """Check for the mean, kept as an axis of one, of the squares of ``x`` over its last axis."""
    axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    rank = None if x.shape is None else len(x.shape)
    if axes is None or rank is None or axes.tolist() not in ([-1], [rank - 1]) or ints(mean, "keepdims", 1) != 1:
        return False
    square = _step(mean.inputs[0], "Pow")
    exponent = None if square is None else constant(square.inputs[1])
    if square is not None and exponent is not None:
        return square.inputs[0] is x and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0
    product = _step(mean.inputs[0], "Mul")
    return product is not None and product.inputs[0] is x and product.inputs[1] is x


def _norm(x: ir.Value, scale: ir.Value | None, epsilon: NDArray[Any]) -> _Norm | str:
    array = constant(scale)
    width = None if x.shape is None else x.shape[-1]
    if scale is None or array is None or x.dtype != ir.DataType.FLOAT or epsilon.size != 1:
        return "the scale is not a constant, or the type is not float32"
    if array.shape != (*(1,) * (array.ndim - 1), width) or array.ndim > len(x.shape or ()):
        return "the scale is not one per column"
    return _Norm(x, scale, float(epsilon.reshape(-1)[0]))
