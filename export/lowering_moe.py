"""Sparse experts for CPUs: the dense-gated form of a mixture of experts becomes one where only chosen experts run.

The canonical graph computes every expert for every row and scales each one's hidden units by its gate:
MatMul(Reshape(Reshape(hidden [T, N, E*h]) * Unsqueeze(gates [T, N, E])), W_down [T, E*h, D]). Here, per token,
the rows with a gate other than 0 are listed expert by expert (NonZero, split by their counts), gathered, sent
through their expert's slices of the weights, and added up where they came from (ScatterND). An expert that no row
chose multiplies nothing and its weights are not read, so the same form serves one row and many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.lowering_nodes import add_initializer, add_node, constant, int8_weight, rank
from export.lowering_per_token import BINARY, UNARY

# Below this many weights per token and expert the bookkeeping takes longer than computing every expert.
MIN_EXPERT_ELEMENTS = 32 * 1024


@dataclass
class _Mixture:
    """One dense-gated mixture: ``x`` [T, N, K] and ``gates`` [T, N, E] in, ``down``'s output [T, N, D] out.

    ``weights`` holds every stacked weight of the experts, ``down`` the last MatMul, ``hidden`` its ungated input.
    """

    down: ir.Node
    hidden: ir.Value
    gates: ir.Value
    experts: int
    tokens: int
    x: ir.Value | None = None
    weights: list[ir.Value] = field(default_factory=list)


def route_experts(graph: ir.Graph, min_elements: int = MIN_EXPERT_ELEMENTS) -> dict[str, tuple[str, ...]]:
    """Rewrite every dense-gated mixture; return weight -> its T * E initializers, token by token.

    Weights are initializers or int8 ones behind DequantizeLinear with one scale per column. A mixture whose
    experts have fewer than ``min_elements`` weights per token is left dense. Numerics: the same products for
    the experts with a gate other than 0, added in another order.
    """
    names: dict[str, tuple[str, ...]] = {}
    for node in list(graph):
        mixture = _match(node)
        if mixture is None or _elements_per_expert(mixture) < min_elements:
            continue
        _rewrite(graph, mixture, names)
    return names


def _match(down: ir.Node) -> _Mixture | None:
    """Return the mixture that ends in a MatMul, None where it is no mixture."""
    if down.op_type != "MatMul" or down.inputs[0] is None or _stacked_shape(down.inputs[1]) is None:
        return None
    product = _through(down.inputs[0], "Reshape")
    multiply = None if product is None else product.producer()
    if multiply is None or multiply.op_type != "Mul":
        return None
    for a, b in (multiply.inputs, tuple(reversed(multiply.inputs))):
        hidden, gates = _through(a, "Reshape"), _through(b, "Unsqueeze")
        if hidden is None or gates is None or a is None or a.shape is None or rank(gates) != 3 or len(a.shape) != 4:
            continue
        tokens, experts = a.shape[0], a.shape[2]
        if not isinstance(tokens, int) or not isinstance(experts, int):
            continue
        mixture = _Mixture(down, hidden, gates, experts, tokens)
        assert down.inputs[1] is not None
        if _collect(mixture, hidden) and mixture.x is not None:
            mixture.weights.append(down.inputs[1])
            return mixture
    return None


def _through(value: ir.Value | None, op_type: str) -> ir.Value | None:
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def _stacked_shape(weight: ir.Value | None) -> tuple[int, int, int] | None:
    """Return [T, K, N] of a constant stacked weight, int8 with one scale per column included."""
    whole, int8 = constant(weight), int8_weight(weight)
    if whole is not None and whole.ndim == 3:
        return whole.shape
    if int8 is not None and int8.q.ndim == 3 and int8.s.shape == (int8.q.shape[0], 1, int8.q.shape[2]):
        return int8.q.shape
    return None


def _collect(mixture: _Mixture, value: ir.Value) -> bool:
    """Walk from the hidden units back to x through element-wise operators; False at anything else."""
    if constant(value) is not None:
        return True
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "MatMul":
        x, weight = node.inputs
        if x is None or weight is None or _stacked_shape(weight) is None or mixture.x not in (None, x):
            return False
        mixture.x = x
        if weight not in mixture.weights:
            mixture.weights.append(weight)
        return rank(x) == 3
    if node.op_type not in UNARY | BINARY:
        return False
    return all(operand is not None and _collect(mixture, operand) for operand in node.inputs)


def _elements_per_expert(mixture: _Mixture) -> int:
    shapes = [_stacked_shape(weight) for weight in mixture.weights]
    return sum(k * n // mixture.experts for _, k, n in filter(None, shapes))


class _Slices:
    """Cuts constants to one token and one expert, each once, and names the pieces after the whole."""

    def __init__(self, graph: ir.Graph, mixture: _Mixture, names: dict[str, tuple[str, ...]]) -> None:
        self.graph, self.mixture, self.names = graph, mixture, names

    def weight(self, value: ir.Value, token: int, expert: int, by_row: bool) -> ir.Value:
        """Return the columns (rows of the down projection) of one expert, [K, h] or [h, D]."""
        whole, int8 = constant(value), int8_weight(value)
        suffix = f"[{token},{expert}]"
        if whole is not None:
            part = add_initializer(self.graph, f"{value.name}{suffix}", self._own(whole[token], expert, by_row))
            self._record(str(value.name), part)
            return part
        assert int8 is not None
        q = add_initializer(self.graph, f"{int8.values.name}{suffix}", self._own(int8.q[token], expert, by_row))
        scales = int8.s[token, 0] if by_row else self._own(int8.s[token], expert, by_row)[0]
        s = add_initializer(self.graph, f"{int8.scale.name}{suffix}", scales)
        self._record(str(int8.values.name), q)
        out = add_node(
            self.mixture.down, "DequantizeLinear", [q, s], {"axis": 1}, name=f"{value.name}{suffix}", like=s
        )
        out.shape = q.shape
        return out

    def constant(self, value: ir.Value, token: int, expert: int) -> ir.Value:
        """Return a constant of the element-wise part, cut where it has a token or a hidden axis."""
        whole = constant(value)
        assert whole is not None
        if whole.ndim == 3 and whole.shape[0] == self.mixture.tokens:
            whole = whole[token]
        elif whole.ndim == 3:
            whole = whole[0]
        if whole.ndim and whole.shape[-1] > 1:
            whole = whole[..., self._range(whole.shape[-1], expert)]
        if whole.ndim == 2 and whole.shape[0] == 1:
            whole = whole[0]  # a 1-D bias lets the runtime fuse GEMM and Add
        return add_initializer(self.graph, f"{value.name}[{token},{expert}]", whole) if whole.ndim else value

    def _own(self, matrix: NDArray[Any], expert: int, by_row: bool) -> NDArray[Any]:
        if by_row:
            return matrix[self._range(matrix.shape[0], expert)]
        return matrix[:, self._range(matrix.shape[1], expert)]

    def _range(self, size: int, expert: int) -> slice:
        width = size // self.mixture.experts
        return slice(expert * width, (expert + 1) * width)

    def _record(self, name: str, part: ir.Value) -> None:
        self.names[name] = (*self.names.get(name, ()), str(part.name))


def _rewrite(graph: ir.Graph, mixture: _Mixture, names: dict[str, tuple[str, ...]]) -> None:
    node, x = mixture.down, mixture.x
    assert x is not None
    out = node.outputs[0]
    prefix = f"{out.name}.moe"
    zero = add_initializer(graph, "lowering.axes.0", np.array([0], np.int64))
    slices = _Slices(graph, mixture, names)
    by_expert = add_node(node, "Transpose", [mixture.gates], {"perm": [0, 2, 1]}, name=f"{prefix}.gates")
    rows_of = _unstack(node, x, mixture.tokens, zero, f"{prefix}.x")
    gates_of = _unstack(node, by_expert, mixture.tokens, zero, f"{prefix}.gate")
    raised: list[ir.Value | None] = []
    for t, (rows, gates) in enumerate(zip(rows_of, gates_of, strict=True)):
        indices, scales = _choices(graph, node, gates, mixture.experts, f"{prefix}[{t}]")
        total = _zeros(graph, node, rows, out, f"{prefix}[{t}]")
        for e, (index, scale) in enumerate(zip(indices, scales, strict=True)):
            here = f"{prefix}[{t},{e}]"
            chosen = add_node(node, "GatherND", [rows, index], name=f"{here}.rows")  # [R_e, K]
            hidden = _expert(slices, mixture.hidden, chosen, t, e, {})
            gated = add_node(node, "Mul", [hidden, scale], name=f"{here}.gated")  # [R_e, h]
            weight = slices.weight(mixture.weights[-1], t, e, by_row=True)
            result = add_node(node, "MatMul", [gated, weight], name=f"{here}.result", like=x)
            # A row chooses an expert once. One ScatterND for all experts would add to a row several times,
            # and ONNX Runtime's CPU kernel loses such additions when it runs on more than one thread.
            total = add_node(node, "ScatterND", [total, index, result], {"reduction": "add"}, name=f"{here}.sum")
        raised.append(add_node(node, "Unsqueeze", [total, zero], name=f"{prefix}[{t}].raised"))
    whole = add_node(node, "Concat", raised, {"axis": 0}, name=f"{out.name}.routed", like=x)
    whole.shape, whole.type = out.shape, out.type
    ir.convenience.replace_all_uses_with(out, whole, replace_graph_outputs=True)


def _choices(
    graph: ir.Graph, node: ir.Node, gates: ir.Value, experts: int, name: str
) -> tuple[list[ir.Value], list[ir.Value]]:
    """From gates [E, N]: per expert the rows that chose it, int64 [R_e, 1], and their gates [R_e, 1]."""
    one, two = (add_initializer(graph, f"lowering.axes.{a}", np.array([a], np.int64)) for a in (1, 2))

    def add(
        op: str, inputs: list[ir.Value | None], what: str, dtype: ir.DataType | None, **attributes: Any
    ) -> ir.Value:
        value = add_node(node, op, inputs, attributes, name=f"{name}.{what}", like=gates)
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        return value

    int64, boolean = ir.DataType.INT64, ir.DataType.BOOL
    nonzero = add("NonZero", [gates], "nonzero", int64)  # [2, R]: expert, row; ordered by expert
    pairs = add("Transpose", [nonzero], "pairs", int64, perm=[1, 0])  # [R, 2]
    rows = add("Slice", [pairs, one, two, one], "index", int64)  # [R, 1]
    scales = add("Unsqueeze", [add("GatherND", [gates, pairs], "values", None), one], "scale", None)  # [R, 1]
    active = add("Cast", [add("Cast", [gates], "active", boolean, to=int(boolean))], "ones", int64, to=int(int64))
    counts = add("ReduceSum", [active, one], "counts", int64, keepdims=0)  # [E]
    by_expert = {"axis": 0}
    return (
        _split(node, rows, by_expert, [counts], experts, f"{name}.index.of"),
        _split(node, scales, by_expert, [counts], experts, f"{name}.scale.of"),
    )


def _zeros(graph: ir.Graph, node: ir.Node, rows: ir.Value, out: ir.Value, name: str) -> ir.Value:
    """Return zeros [N, D]: the row count of x, the width of the output."""
    int64 = ir.TensorType(ir.DataType.INT64)
    assert out.shape is not None
    width = out.shape[-1]
    assert isinstance(width, int)
    count = add_node(node, "Shape", [rows], {"start": 0, "end": 1}, name=f"{name}.count")
    d = add_initializer(graph, f"lowering.width.{width}", np.array([width], np.int64))
    shape = add_node(node, "Concat", [count, d], {"axis": 0}, name=f"{name}.shape")
    count.type = shape.type = int64
    return add_node(node, "ConstantOfShape", [shape], name=f"{name}.zeros", like=rows)


def _expert(
    slices: _Slices,
    value: ir.Value,
    rows: ir.Value,
    token: int,
    expert: int,
    done: dict[ir.Value, ir.Value],
) -> ir.Value:
    """Compute a value of the element-wise part for one token's gathered rows and one expert's hidden units."""
    if value in done:
        return done[value]
    if constant(value) is not None:
        return slices.constant(value, token, expert)
    source = value.producer()
    assert source is not None
    if source.op_type == "MatMul":
        assert source.inputs[1] is not None
        inputs: list[ir.Value | None] = [rows, slices.weight(source.inputs[1], token, expert, by_row=False)]
    else:
        operands = [operand for operand in source.inputs if operand is not None]
        inputs = [_expert(slices, operand, rows, token, expert, done) for operand in operands]
    name = f"{value.name}[{token},{expert}]"
    done[value] = add_node(slices.mixture.down, source.op_type, inputs, source.attributes, name=name, like=value)
    return done[value]


def _unstack(node: ir.Node, value: ir.Value, count: int, axes: ir.Value, name: str) -> list[ir.Value]:
    """[T, ...] -> T values without the token axis."""
    parts = _split(node, value, {"axis": 0, "num_outputs": count}, [], count, f"{name}.slice")
    return [add_node(node, "Squeeze", [part, axes], name=f"{name}[{t}]") for t, part in enumerate(parts)]


def _split(
    node: ir.Node, value: ir.Value, attributes: dict[str, int], sizes: list[ir.Value], count: int, name: str
) -> list[ir.Value]:
    split = ir.node("Split", [value, *sizes], attributes, num_outputs=count)
    node.prepend(split)
    for index, part in enumerate(split.outputs):
        part.name, part.type = f"{name}[{index}]", value.type
    return list(split.outputs)
