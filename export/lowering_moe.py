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

from export.lowering_nodes import add_initializer, add_node, constant, int8_weight, ints, rank
from export.lowering_per_token import BINARY, UNARY

# Below this many weights per token and expert the bookkeeping takes longer than computing every expert.
MIN_EXPERT_ELEMENTS = 32 * 1024

_INT64 = ir.DataType.INT64


@dataclass
class _Mixture:
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
        shapes = [_stacked_shape(weight) for weight in self.weights]
        return sum(k * n // self.experts for _, k, n in filter(None, shapes))


def route_experts(graph: ir.Graph, min_elements: int = MIN_EXPERT_ELEMENTS) -> dict[str, tuple[str, ...]]:
    """Rewrite every dense-gated mixture; return weight -> its T * E initializers, token by token.

    Weights are initializers or int8 ones behind DequantizeLinear with one scale per column. A mixture whose
    experts have fewer than ``min_elements`` weights per token is left dense. Numerics: the same products for
    the experts with a gate other than 0, added in another order.
    """
    names: dict[str, tuple[str, ...]] = {}
    for node in list(graph):
        mixture = _match(node)
        if mixture is not None and mixture.elements_per_expert() >= min_elements:
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
        mixture = _Mixture(down, hidden, gates, tokens, experts)
        assert down.inputs[1] is not None
        if _collect(mixture, hidden) and mixture.weights:
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


def _kind(mixture: _Mixture, value: ir.Value) -> str:
    """Return what a value of the hidden part is: constant, matmul, elementwise, rows (read per row), or "".

    Rows are [T, N, 1] (a norm's scale) or [T, N, E*h] (a product computed elsewhere, once per user for example).
    """
    if constant(value) is not None:
        return "constant"
    node, shape = value.producer(), value.shape
    if shape is None or len(shape) != 3 or shape[0] != mixture.tokens:
        return ""
    if node is not None and node.domain == "" and shape[2] != 1:
        if node.op_type == "MatMul" and _stacked_shape(node.inputs[1]) is not None:
            x = node.inputs[0]
            return "matmul" if x is not None and rank(x) == 3 and x.shape and x.shape[0] == shape[0] else ""
        if node.op_type in UNARY | BINARY:
            return "elementwise"
    return "rows" if isinstance(shape[2], int) else ""


def _collect(mixture: _Mixture, value: ir.Value) -> bool:
    """Walk back through the element-wise operators and note the weights; False at anything unknown."""
    kind, node = _kind(mixture, value), value.producer()
    if kind == "matmul" and node is not None and node.inputs[1] is not None:
        if node.inputs[1] not in mixture.weights:
            mixture.weights.append(node.inputs[1])
    elif kind == "elementwise" and node is not None:
        return all(operand is not None and _collect(mixture, operand) for operand in node.inputs)
    return kind != ""


def _rewrite(graph: ir.Graph, mixture: _Mixture, names: dict[str, tuple[str, ...]]) -> None:
    node, out = mixture.down, mixture.down.outputs[0]
    slices = _Slices(graph, mixture, names)
    by_expert = add_node(node, "Transpose", [mixture.gates], {"perm": [0, 2, 1]}, name=f"{out.name}.moe.gates")
    unstacked: dict[ir.Value, list[ir.Value]] = {}
    raised: list[ir.Value | None] = []
    for t in range(mixture.tokens):
        token = _Token(graph, mixture, slices, t, by_expert, unstacked)
        total = token.zeros()
        for e in range(mixture.experts):
            hidden = token.hidden(mixture.hidden, e, {})
            gated = token.add("Mul", [hidden, token.scales[e]], f"{e}.gated")  # [R_e, h]
            weight = slices.weight(mixture.weights[-1], t, e, by_row=True)
            result = token.add("MatMul", [gated, weight], f"{e}.result")
            # A row chooses an expert once. One ScatterND for all experts would add to a row several times,
            # and ONNX Runtime's CPU kernel loses such additions when it runs on more than one thread.
            total = token.add("ScatterND", [total, token.rows[e], result], f"{e}.sum", reduction="add")
        raised.append(token.add("Unsqueeze", [total, token.axis(0)], "raised"))
    whole = add_node(node, "Concat", raised, {"axis": 0}, name=f"{out.name}.routed", like=out)
    whole.shape, whole.type = out.shape, out.type
    ir.convenience.replace_all_uses_with(out, whole, replace_graph_outputs=True)


class _Slices:
    """Cuts constants to one token and one expert and names the pieces after the whole."""

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
        name = f"{value.name}{suffix}"
        out = add_node(self.mixture.down, "DequantizeLinear", [q, s], {"axis": 1}, name=name, like=s)
        out.shape = q.shape
        return out

    def constant(self, value: ir.Value, token: int, expert: int) -> ir.Value:
        """Return a constant of the element-wise part, cut where it has a token or a hidden axis."""
        whole = constant(value)
        assert whole is not None
        if whole.ndim == 3:
            whole = whole[token if whole.shape[0] == self.mixture.tokens else 0]
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
        known = self.names.get(name, ())
        self.names[name] = known if part.name in known else (*known, str(part.name))


class _Token:
    """Everything of one token: which rows chose which expert, and how values are read at those rows.

    ``rows``: per expert the rows that chose it, int64 [R_e, 1]. ``scales``: their gates [R_e, 1].
    """

    def __init__(
        self,
        graph: ir.Graph,
        mixture: _Mixture,
        slices: _Slices,
        token: int,
        gates: ir.Value,
        unstacked: dict[ir.Value, list[ir.Value]],
    ) -> None:
        self.graph, self.mixture, self.slices, self.token = graph, mixture, slices, token
        self.unstacked = unstacked
        own = self.slice_of(gates)  # [E, N]
        nonzero = self.add("NonZero", [own], "nonzero", _INT64)  # [2, R]: expert, row; ordered by expert
        self.pairs = self.add("Transpose", [nonzero], "pairs", _INT64, perm=[1, 0])  # [R, 2]
        values = self.add("GatherND", [own, self.pairs], "values")
        active = self.add("Cast", [own], "active", ir.DataType.BOOL, to=int(ir.DataType.BOOL))
        ones = self.add("Cast", [active], "ones", _INT64, to=int(_INT64))
        self.counts = self.add("ReduceSum", [ones, self.axis(1)], "counts", _INT64, keepdims=0)  # [E]
        self.all_rows, self.all_experts = self._column(1), self._column(0)  # [R, 1] each
        self.places: dict[tuple[ir.Value | None, bool], list[ir.Value]] = {}
        self.rows = self._places(None, False)
        self.scales = self._split(self.add("Unsqueeze", [values, self.axis(1)], "scale"), "scale.of")

    def add(
        self, op: str, inputs: list[ir.Value | None], what: str, dtype: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """Insert a node before the mixture's last MatMul; float unless ``dtype`` says otherwise."""
        out = self.mixture.down.outputs[0]
        name = f"{out.name}.moe[{self.token}].{what}"
        value = add_node(self.mixture.down, op, inputs, attributes, name=name, like=out)
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        return value

    def axis(self, axis: int) -> ir.Value:
        """Return a constant [axis]."""
        return add_initializer(self.graph, f"lowering.axes.{axis}", np.array([axis], np.int64))

    def zeros(self) -> ir.Value:
        """Return zeros [N, D]."""
        shape = self.mixture.down.outputs[0].shape
        assert shape is not None
        assert isinstance(shape[2], int)
        name = f"lowering.width.{shape[2]}"
        width = add_initializer(self.graph, name, np.array([shape[2]], np.int64))
        count = self.add("Shape", [self.slice_of(self.mixture.gates)], "count", _INT64, start=0, end=1)
        whole = self.add("Concat", [count, width], "shape", _INT64, axis=0)
        return self.add("ConstantOfShape", [whole], "zeros")

    def hidden(self, value: ir.Value, expert: int, done: dict[ir.Value, ir.Value]) -> ir.Value:
        """Compute a value of the hidden part for one expert's rows and hidden units, [R_e, h] or [R_e, 1]."""
        if value in done:
            return done[value]
        kind, source = _kind(self.mixture, value), value.producer()
        if kind == "constant":
            return self.slices.constant(value, self.token, expert)
        if kind == "rows":
            done[value] = self._at_rows(value, expert, wide=value.shape is not None and value.shape[2] != 1)
            return done[value]
        assert source is not None
        if kind == "matmul":
            x, weight = source.inputs[0], source.inputs[1]
            assert x is not None
            assert weight is not None
            if x not in done:
                done[x] = self._at_rows(x, expert, wide=False)  # [R_e, K]
            inputs: list[ir.Value | None] = [done[x], self.slices.weight(weight, self.token, expert, by_row=False)]
        else:
            inputs = [None if v is None else self.hidden(v, expert, done) for v in source.inputs]
        attributes = {name: attribute.value for name, attribute in source.attributes.items()}
        done[value] = self.add(source.op_type, inputs, f"{expert}.{value.name}", **attributes)
        return done[value]

    def slice_of(self, value: ir.Value) -> ir.Value:
        """[T, ...] -> this token's part, the split shared by all tokens."""
        if value not in self.unstacked:
            name = f"{self.mixture.down.outputs[0].name}.moe.{value.name}"
            split = ir.node(
                "Split", [value], {"axis": 0, "num_outputs": self.mixture.tokens}, num_outputs=self.mixture.tokens
            )
            self.mixture.down.prepend(split)
            for t, part in enumerate(split.outputs):
                part.name, part.type = f"{name}.slice[{t}]", value.type
            self.unstacked[value] = [
                add_node(self.mixture.down, "Squeeze", [part, self.axis(0)], name=f"{name}[{t}]")
                for t, part in enumerate(split.outputs)
            ]
        return self.unstacked[value][self.token]

    def _at_rows(self, value: ir.Value, expert: int, wide: bool) -> ir.Value:
        """Read [T, N, W] at one expert's rows: all of W, or where ``wide`` the expert's own part of it.

        A value gathered from users to candidates ([T, U, W] by an index) is read from the users directly; one of a
        single row, [T, 1, W], broadcasts and stays one row.
        """
        index: ir.Value | None = None
        gather = value.producer()
        if gather is not None and gather.op_type == "Gather" and ints(gather, "axis", 0) == 1:
            users, candidate = gather.inputs
            if users is not None and candidate is not None and rank(users) == 3 and rank(candidate) == 1:
                value, index = users, candidate
        part = self.slice_of(value)  # [N, U or 1, W]
        what = f"{expert}.{value.name}"
        assert value.shape is not None
        if value.shape[1] == 1:
            return self._own_columns(part, value.shape[2], expert, what) if wide else part
        if wide:
            e, width = self.mixture.experts, value.shape[2]
            assert isinstance(width, int)
            cut = add_initializer(self.graph, f"lowering.cut.{width}.{e}", np.array([0, e, width // e], np.int64))
            part = self.add("Reshape", [part, cut], f"{what}.cut")  # [N or U, E, h]
        return self.add("GatherND", [part, self._places(index, wide)[expert]], f"{what}.rows")

    def _own_columns(self, part: ir.Value, width: object, expert: int, what: str) -> ir.Value:
        """[1, E*h] -> [1, h]."""
        assert isinstance(width, int)
        h = width // self.mixture.experts
        start, end = (
            add_initializer(self.graph, f"lowering.at.{at}", np.array([at], np.int64))
            for at in (expert * h, (expert + 1) * h)
        )
        return self.add("Slice", [part, start, end, self.axis(1)], f"{what}.own")

    def _places(self, index: ir.Value | None, wide: bool) -> list[ir.Value]:
        """Per expert where to read: row, or its user by ``index``; and the expert where ``wide``; [R_e, 1 or 2]."""
        if (index, wide) not in self.places:
            rows, what = self.all_rows, "rows" if index is None else f"{index.name}.users"
            if index is not None:
                users = self.add("GatherND", [index, rows], f"{what}.flat", _INT64)
                rows = self.add("Unsqueeze", [users, self.axis(1)], what, _INT64)
            if wide:
                what = f"{what}.cells"
                rows = self.add("Concat", [rows, self.all_experts], what, _INT64, axis=1)
            self.places[index, wide] = self._split(rows, f"{what}.of")
        return self.places[index, wide]

    def _column(self, column: int) -> ir.Value:
        """Return column 0 (expert) or 1 (row) of the pairs, [R, 1]."""
        bounds = [self.axis(column), self.axis(column + 1), self.axis(1)]
        return self.add("Slice", [self.pairs, *bounds], f"column[{column}]", _INT64)

    def _split(self, value: ir.Value, what: str) -> list[ir.Value]:
        """Cut [R, ...] by expert."""
        split = ir.node("Split", [value, self.counts], {"axis": 0}, num_outputs=self.mixture.experts)
        self.mixture.down.prepend(split)
        for e, part in enumerate(split.outputs):
            part.name = f"{self.mixture.down.outputs[0].name}.moe[{self.token}].{what}[{e}]"
            part.type = value.type
        return list(split.outputs)
