"""Find dense-gated mixtures of experts: MatMul(Reshape(Reshape(hidden) * Unsqueeze(gates)), W_down) by constants."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from export.lowering.feature_tokens import BINARY, UNARY
from export.lowering.nodes import constant, int8_weight, rank


@dataclass
class Mixture:
    """One dense-gated mixture: element-wise operators on MatMuls make ``hidden``, which is gated and projected.

    ``weights``: every stacked weight of the experts, the one of ``down``, the last MatMul, at the end.
    """

    down: ir.Node
    hidden: ir.Value
    gates: ir.Value
    tokens: int
    experts: int
    weights: list[ir.Value] = field(default_factory=list)

    def elements_per_expert(self) -> int:
        """Return the weights of one expert for one feature token."""
        shapes = [stacked_shape(weight) for weight in self.weights]
        return sum(k * n // self.experts for _, k, n in filter(None, shapes))


def match_mixture(down: ir.Node) -> Mixture | str:
    """Match the MatMul that ends a dense-gated mixture."""
    if down.op_type != "MatMul" or down.inputs[0] is None or stacked_shape(down.inputs[1]) is None:
        return ""
    product = _through(down.inputs[0], "Reshape")
    multiply = None if product is None else product.producer()
    if multiply is None or multiply.op_type != "Mul":
        return ""
    for a, b in (multiply.inputs, tuple(reversed(multiply.inputs))):
        hidden, gates = _through(a, "Reshape"), _through(b, "Unsqueeze")
        if hidden is None or gates is None or a is None or a.shape is None or rank(gates) != 3 or len(a.shape) != 4:
            continue
        tokens, experts = a.shape[0], a.shape[2]
        if not isinstance(tokens, int) or not isinstance(experts, int):
            continue
        mixture = Mixture(down, hidden, gates, tokens, experts)
        assert down.inputs[1] is not None
        if not _collect(mixture, hidden) or not mixture.weights:
            return f"the experts' '{hidden.name}' is not element-wise operators on MatMuls by constants"
        mixture.weights.append(down.inputs[1])
        return mixture
    return ""


def _through(value: ir.Value | None, op_type: str) -> ir.Value | None:
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def stacked_shape(weight: ir.Value | None) -> tuple[int, int, int] | None:
    """Return [T, K, N] of a constant stacked weight, int8 with one scale per column included."""
    whole, int8 = constant(weight), int8_weight(weight)
    if whole is not None and whole.ndim == 3:
        return whole.shape
    if int8 is not None and int8.q.ndim == 3 and int8.s.shape == (int8.q.shape[0], 1, int8.q.shape[2]):
        return int8.q.shape
    return None


def kind_of(mixture: Mixture, value: ir.Value) -> str:
    """Return what a value of the hidden part is: constant, matmul, elementwise, rows (read per row), or "".

    Rows are [T, N, 1] (a norm's scale) or [T, N, E*h] (a product computed elsewhere, once per user for example).
    """
    if constant(value) is not None:
        return "constant"
    node, shape = value.producer(), value.shape
    if shape is None or len(shape) != 3 or shape[0] != mixture.tokens:
        return ""
    if node is not None and node.domain == "" and shape[2] != 1:
        if node.op_type == "MatMul" and stacked_shape(node.inputs[1]) is not None:
            x = node.inputs[0]
            return "matmul" if x is not None and rank(x) == 3 and x.shape and x.shape[0] == shape[0] else ""
        if node.op_type in UNARY | BINARY:
            return "elementwise"
    return "rows" if isinstance(shape[2], int) else ""


def _collect(mixture: Mixture, value: ir.Value) -> bool:
    """Walk back through the element-wise operators and note the weights; False at anything unknown."""
    kind, node = kind_of(mixture, value), value.producer()
    if kind == "matmul" and node is not None and node.inputs[1] is not None:
        if node.inputs[1] not in mixture.weights:
            mixture.weights.append(node.inputs[1])
    elif kind == "elementwise" and node is not None:
        return all(operand is not None and _collect(mixture, operand) for operand in node.inputs)
    return kind != ""
