"""Sparse experts for CPUs: rewrite a dense-gated mixture of experts so that only the chosen experts run.

The canonical graph computes every expert for every row and scales each one's hidden units by its gate:
MatMul(Reshape(Reshape(hidden [T, N, E*h]) * Unsqueeze(gates [T, N, E])), W_down [T, E*h, D]). Here the rows with
a gate other than 0 are listed expert by expert (NonZero, split by their counts), gathered, sent through their
expert's slices of the weights; then every row gathers its results and adds them up under their gates. An expert
that no row chose multiplies nothing and its weights are not read, so the same form serves one row and many.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export import names
from export.lowering.moe_match import Mixture, kind_of, match_mixture
from export.lowering.nodes import (
    add_initializer,
    add_node,
    constant,
    int8_weight,
    ints,
    rank,
    swaps_first_axes,
    take_over,
)
from export.lowering.passes import Lowering, Pass, matches

# Below this many weights per feature token and expert, routing costs more than computing every expert.
MIN_EXPERT_ELEMENTS = 32 * 1024

_INT64 = ir.DataType.INT64


def route_experts(lowering: Lowering) -> None:
    """Rewrite every dense-gated mixture.

    Weights are initializers or int8 ones behind DequantizeLinear with one scale per column. A mixture whose experts
    have fewer than ``min_expert_elements`` weights per feature token stays dense. Numerics: the same products for the
    experts with a gate other than 0, added in another order.
    """
    for _, mixture in matches(lowering.graph, match_mixture):
        if mixture.elements_per_expert() >= lowering.min_expert_elements:
            _rewrite(lowering.graph, mixture, lowering.parts)


ROUTE_EXPERTS = Pass("route experts", route_experts)


def _rewrite(graph: ir.Graph, mixture: Mixture, held: dict[str, tuple[str, ...]]) -> None:
    out = mixture.down.outputs[0]
    slices = _Slices(graph, mixture, held)
    routes = _Routes(graph, mixture, slices)
    users = [use.node for use in out.uses()]
    rows_first = len(users) == 1 and swaps_first_axes(users[0]) and not out.is_graph_output()
    if rows_first:
        out = users[0].outputs[0]  # concatenate the tokens in that order directly
    summed: list[ir.Value | None] = []
    for t in range(mixture.tokens):
        results = [routes.no_result()]
        for e in range(mixture.experts):
            hidden = routes.hidden(mixture.hidden, t, e, {})
            weight = slices.weight(mixture.weights[-1], t, e, by_row=True)
            results.append(routes.add("MatMul", [hidden, weight], names.of_index("result", t, e)))  # [R_te, D]
        summed.append(routes.sum_by_row(results, t, rows_first))
    take_over(out, routes.add("Concat", summed, "sum", axis=1 if rows_first else 0))


class _Slices:
    """Slices constants to one feature token and one expert; slices are named after the whole."""

    def __init__(self, graph: ir.Graph, mixture: Mixture, held: dict[str, tuple[str, ...]]) -> None:
        self.graph, self.mixture, self.held = graph, mixture, held

    def weight(self, value: ir.Value, token: int, expert: int, by_row: bool) -> ir.Value:
        """Return the columns (rows of the down projection) of one expert, [K, h] or [h, D]."""
        whole, int8 = constant(value), int8_weight(value)
        at = (token, expert)
        if whole is not None:
            part = add_initializer(self.graph, names.sliced(value.name, *at), self._own(whole[token], expert, by_row))
            self._record(str(value.name), part)
            return part
        assert int8 is not None
        q = add_initializer(self.graph, names.sliced(int8.values.name, *at), self._own(int8.q[token], expert, by_row))
        scales = int8.s[token, 0] if by_row else self._own(int8.s[token], expert, by_row)[0]
        s = add_initializer(self.graph, names.sliced(int8.scale.name, *at), scales)
        self._record(str(int8.values.name), q)
        name = names.sliced(value.name, *at)
        out = add_node(self.mixture.down, "DequantizeLinear", [q, s], {"axis": 1}, name=name, like=s)
        out.shape = q.shape
        return out

    def constant(self, value: ir.Value, token: int, expert: int) -> ir.Value:
        """Return a constant of the element-wise part, sliced along its token and hidden axes if it has them."""
        whole = constant(value)
        assert whole is not None
        if whole.ndim == 3:
            whole = whole[token if whole.shape[0] == self.mixture.tokens else 0]
        if whole.ndim and whole.shape[-1] > 1:
            whole = whole[..., self._range(whole.shape[-1], expert)]
        if whole.ndim == 2 and whole.shape[0] == 1:
            whole = whole[0]  # a 1-D bias lets the runtime fuse GEMM and Add
        return add_initializer(self.graph, names.sliced(value.name, token, expert), whole) if whole.ndim else value

    def _own(self, matrix: NDArray[Any], expert: int, by_row: bool) -> NDArray[Any]:
        if by_row:
            return matrix[self._range(matrix.shape[0], expert)]
        return matrix[:, self._range(matrix.shape[1], expert)]

    def _range(self, size: int, expert: int) -> slice:
        width = size // self.mixture.experts
        return slice(expert * width, (expert + 1) * width)

    def _record(self, name: str, part: ir.Value) -> None:
        known = self.held.get(name, ())
        self.held[name] = known if part.name in known else (*known, str(part.name))


class _Routes:
    """Which rows of which feature token chose which expert, and how values are read at those rows.

    The R choices of all tokens are listed once, ordered by token, expert, row, and cut into T * E lists; list
    t * E + e has the R_te rows of token t that chose expert e.
    """

    def __init__(self, graph: ir.Graph, mixture: Mixture, slices: _Slices) -> None:
        self.graph, self.mixture, self.slices = graph, mixture, slices
        t, e = mixture.tokens, mixture.experts
        gates = self.add("Transpose", [mixture.gates], "by_expert", perm=[0, 2, 1])  # [T, E, N]
        flat = self.add("Reshape", [gates, self.ints(t * e, -1)], "flat")  # [T * E, N]: faster to search
        pairs = self.add("NonZero", [flat], "nonzero", _INT64)  # [2, R]: list, row
        self.pairs = self.add("Transpose", [pairs], "pairs", _INT64, perm=[1, 0])  # [R, 2]
        active = self.add("Cast", [flat], "active", ir.DataType.BOOL, to=int(ir.DataType.BOOL))
        self.ones = self.add("Cast", [active], "ones", _INT64, to=int(_INT64))  # [T * E, N]
        self.lengths = self.add("ReduceSum", [self.ones, self.ints(1)], "lengths", _INT64, keepdims=0)  # [T * E]
        self.results, experts = self._results()
        chosen = self.add("GatherElements", [mixture.gates, experts], "gates", axis=2)  # [T, N, most]
        self.gates = self.add("Unsqueeze", [chosen, self.ints(2)], "gates.rows")  # [T, N, 1, most]
        self._lists: dict[tuple[ir.Value | None, bool, bool], list[ir.Value]] = {}
        self._by_expert: dict[ir.Value, ir.Value] = {}

    def _results(self) -> tuple[ir.Value, ir.Value]:
        """Return the index, from 1, of each row's results among those of its token, and their experts.

        Both [T, N, most]; ``most`` is the largest number of experts that one row of this call chose, at least 1.
        A row that chose fewer is padded with number 0 and an expert whose gate is 0.
        """
        t, e = self.mixture.tokens, self.mixture.experts
        of_token = self.add("Reshape", [self.ones, self.ints(t, -1)], "ones.token", _INT64)  # [T, E * N]
        last = add_initializer(self.graph, names.shared("axis", 1), np.array(1, np.int64))
        number = self.add("CumSum", [of_token, last], "number", _INT64)
        number = self.add("Mul", [number, of_token], "number.chosen", _INT64)  # 0 where not chosen
        number = self.add("Reshape", [number, self.ints(t, e, -1)], "number.cut", _INT64)
        number = self.add("Transpose", [number], "number.by_row", _INT64, perm=[0, 2, 1])  # [T, N, E]
        ones = self.add("Reshape", [self.ones, self.ints(t, e, -1)], "ones.cut", _INT64)
        per_row = self.add("ReduceSum", [ones, self.ints(1)], "per_row", _INT64, keepdims=0)  # [T, N]
        flat = self.add("Reshape", [per_row, self.ints(-1)], "per_row.flat", _INT64)
        flat = self.add("Concat", [flat, self.ints(1)], "per_row.least", _INT64, axis=0)
        most = self.add("ReduceMax", [flat], "most", _INT64, keepdims=1)  # [1]
        top = ir.node("TopK", [number, most], {"axis": -1, "sorted": 0}, num_outputs=2)
        self.mixture.down.prepend(top)
        for output, what in zip(top.outputs, ("results", "experts"), strict=True):
            output.name = names.routed(self.mixture.down.outputs[0].name, what)
            output.type = ir.TensorType(_INT64)
        return top.outputs[0], top.outputs[1]

    def no_result(self) -> ir.Value:
        """Return the constant row [1, D] that number 0 stands for."""
        shape = self.mixture.down.outputs[0].shape
        assert shape is not None
        assert isinstance(shape[2], int)
        return add_initializer(self.graph, names.shared("zeros", shape[2]), np.zeros((1, shape[2]), np.float32))

    def sum_by_row(self, results: list[ir.Value], token: int, rows_first: bool) -> ir.Value:
        """Add up each row's results of one token under their gates; returns [1, N, D], or [N, 1, D].

        Every row gathers its own. (ScatterND with addition takes longer: ONNX Runtime copies all rows for every
        expert. As one node for all experts it even loses additions to the same row on several threads.)
        """
        together = self.add("Concat", [*results], names.of_index("results", token), axis=0)  # [1 + R_t, D]
        at = self.ints(token)
        numbers = self.add("Gather", [self.results, at], names.of_index("numbers", token), _INT64, axis=0)
        found = self.add("Gather", [together, numbers], names.of_index("found", token), axis=0)  # [1, N, most, D]
        gates = self.add("Gather", [self.gates, at], names.of_index("gates", token), axis=0)  # [1, N, 1, most]
        product = self.add("MatMul", [gates, found], names.of_index("sum", token))  # [1, N, 1, D]
        return self.add("Squeeze", [product, self.ints(0 if rows_first else 2)], names.of_index("summed", token))

    def add(
        self, op: str, inputs: list[ir.Value | None], what: str, dtype: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """Insert a node before the mixture's last MatMul; float unless ``dtype`` says otherwise."""
        out = self.mixture.down.outputs[0]
        value = add_node(self.mixture.down, op, inputs, attributes, name=names.routed(out.name, what), like=out)
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """Return a constant vector."""
        name = names.shared("ints", *numbers)
        return add_initializer(self.graph, name, np.array(numbers, np.int64))

    def hidden(self, value: ir.Value, token: int, expert: int, done: dict[ir.Value, ir.Value]) -> ir.Value:
        """Compute a value of the hidden part for one expert's rows and hidden units, [R_te, h] or [R_te, 1]."""
        if value in done:
            return done[value]
        kind, source = kind_of(self.mixture, value), value.producer()
        if kind == "constant":
            return self.slices.constant(value, token, expert)
        if kind == "rows":
            wide = value.shape is not None and value.shape[2] != 1
            done[value] = self._at_rows(value, token, expert, wide)
            return done[value]
        assert source is not None
        if kind == "matmul":
            x, weight = source.inputs[0], source.inputs[1]
            assert x is not None
            assert weight is not None
            if x not in done:
                done[x] = self._at_rows(x, token, expert, wide=False)  # [R_te, K]
            inputs: list[ir.Value | None] = [done[x], self.slices.weight(weight, token, expert, by_row=False)]
        else:
            inputs = [None if v is None else self.hidden(v, token, expert, done) for v in source.inputs]
        attributes = {name: attribute.value for name, attribute in source.attributes.items()}
        done[value] = self.add(source.op_type, inputs, names.of_index(value.name, token, expert), **attributes)
        return done[value]

    def _at_rows(self, value: ir.Value, token: int, expert: int, wide: bool) -> ir.Value:
        """Read [T, N, W] at one expert's rows: all of W, or if ``wide`` the expert's part of it.

        A value gathered from users to candidates ([T, U, W] by an index) is read from the users directly, and a
        transposed one from its source [N, T, W]; a single row, [T, 1, W], broadcasts and stays one row.
        """
        index: ir.Value | None = None
        rows_first = False
        node = value.producer()
        if node is not None and node.op_type == "Gather" and ints(node, "axis", 0) == 1:
            users, candidate = node.inputs
            if users is not None and candidate is not None and rank(users) == 3 and rank(candidate) == 1:
                value, index = users, candidate
        elif node is not None and not wide and swaps_first_axes(node) and node.inputs[0] is not None:
            value, rows_first = node.inputs[0], True
        assert value.shape is not None
        single = not rows_first and value.shape[1] == 1
        source = self._cut_by_expert(value) if wide else value  # [T, N or U or 1, W], [N, T, W] or [T, ..., E, h]
        what = names.of_index(value.name, token, expert)
        if not single:
            at = self.indices(index, wide, rows_first)[token * self.mixture.experts + expert]
        else:
            at = self.ints(token, 0, expert) if wide else self.ints(token, 0)
        return self.add("GatherND", [source, at], names.derived(what, "rows"))

    def _cut_by_expert(self, value: ir.Value) -> ir.Value:
        """[T, N, E*h] -> [T, N, E, h], once for all experts."""
        if value not in self._by_expert:
            assert value.shape is not None
            width = value.shape[2]
            assert isinstance(width, int)
            e = self.mixture.experts
            self._by_expert[value] = self.add(
                "Reshape", [value, self.ints(0, 0, e, width // e)], names.derived(value.name, "cut")
            )
        return self._by_expert[value]

    def indices(self, index: ir.Value | None, wide: bool, rows_first: bool) -> list[ir.Value]:
        """Return what each list reads: token and row, or the row's user by ``index``; and the expert if ``wide``."""
        key = (index, wide, rows_first)
        if key not in self._lists:
            what = "rows" if index is None else str(index.name)
            what = names.derived(what, "cells") if wide else what
            what = names.derived(what, "first") if rows_first else what
            lists, rows = self._column(0, names.derived(what, "lists")), self._column(1, names.derived(what, "rows"))
            if index is not None:
                users = self.add("GatherND", [index, rows], names.derived(what, "flat"), _INT64)
                rows = self.add("Unsqueeze", [users, self.ints(1)], names.derived(what, "users"), _INT64)
            e = self.ints(self.mixture.experts)
            tokens = self.add("Div", [lists, e], names.derived(what, "tokens"), _INT64)
            parts: list[ir.Value | None] = [rows, tokens] if rows_first else [tokens, rows]
            if wide:
                parts.append(self.add("Mod", [lists, e], names.derived(what, "experts"), _INT64))
            self._lists[key] = self._cut(self.add("Concat", parts, names.derived(what, "places"), _INT64, axis=1))
        return self._lists[key]

    def _column(self, column: int, what: str) -> ir.Value:
        """Return a column of the pairs, [R, 1]."""
        return self.add("Gather", [self.pairs, self.ints(column)], what, _INT64, axis=1)

    def _cut(self, value: ir.Value) -> list[ir.Value]:
        """Cut [R, ...] into the T * E lists."""
        count = self.mixture.tokens * self.mixture.experts
        split = ir.node("Split", [value, self.lengths], {"axis": 0}, num_outputs=count)
        self.mixture.down.prepend(split)
        for at, part in enumerate(split.outputs):
            part.name, part.type = names.sliced(value.name, at), value.type
        return list(split.outputs)
