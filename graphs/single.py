"""The item half for requests of one user: state is broadcast from one row instead of gathered to every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphs.cost import static
from graphs.cut import Cut
from graphs.halves import Copier
from graphs.row_layout import Rows
from graphs.sides import NodeSide, is_row_count
from graphs.trace import Traced

aten = torch.ops.aten


def build_single_user_half(
    traced: Traced, sides: Mapping[fx.Node, NodeSide], cut: Cut, rows: Mapping[fx.Node, Rows], names: tuple[str, ...]
) -> fx.GraphModule:
    """Return the item half without user_index: item inputs [N, ...], state [1, ...] -> the model's outputs [N, ...].

    What depends on the user alone keeps one row. Where it meets the candidates, element-wise ops broadcast it, and a
    product with it is one GEMM of all candidates' rows with a rank-2 operand; only ops that cannot broadcast (joins,
    lookups, convolutions) get it expanded.
    """
    builder = _Builder(traced, rows)
    graph = traced.module.graph
    for node in graph.nodes:
        if node.op == "placeholder" and sides[node] == "item":
            builder.done[node] = builder.placeholder(str(node.target))
    for node, name in zip(cut.state, names, strict=True):
        given, axis = builder.placeholder(name), rows[node].axis + (rows[node].outer > 1)
        moved = builder.call(aten.movedim.int, given, 0, axis) if axis else given
        builder.one_row[node] = builder.folded(moved, node)
    counted = next(n for n in graph.nodes if n.op == "placeholder" and sides[n] == "item" and n.users)
    builder.count_rows(builder.done[counted])
    recomputed = set(cut.recomputed)
    for node in graph.nodes:
        if node.op == "call_function" and not is_row_count(node):
            if sides[node] == "item":
                builder.meet(node)
            elif node in recomputed:
                builder.one_row[node] = builder.copy_one_row(node)
    result = next(n for n in graph.nodes if n.op == "output")
    return builder.finish(tuple(builder.all_rows(n) for n in result.args[0]))


class _Builder(Copier):
    """Copies nodes twice over: with all rows (``done``) and, for user-only values, with one (``one_row``)."""

    def __init__(self, traced: Traced, rows: Mapping[fx.Node, Rows]) -> None:
        super().__init__(traced)
        self.row_axes = rows
        self.one_row: dict[fx.Node, Any] = {}

    def copy_one_row(self, node: fx.Node) -> Any:
        """Copy a node that depends on the user or on parameters only, as for a batch of one."""
        if node not in self.one_row:
            value = node.meta.get("val")
            if node.op == "get_attr":
                self.one_row[node] = self.copy(node)
            elif isinstance(value, (int, torch.SymInt)):
                self.one_row[node] = static(value)
            else:
                for source in node.all_input_nodes:
                    self.copy_one_row(source)
                self.one_row[node] = self.graph.node_copy(node, lambda n: self.one_row[n])
        return self.one_row[node]

    def meet(self, node: fx.Node) -> None:
        """Copy an item-side node; user values it reads are broadcast where the op can, else expanded."""
        users = [n for n in node.all_input_nodes if n in self.one_row and n not in self.done and n.op != "get_attr"]
        users = [n for n in users if not is_row_count(n) and n in self.row_axes]
        broadcasts = users and self._broadcasts(node, users)
        for source in node.all_input_nodes:
            if source not in users:
                self.copy(source)
            elif not broadcasts:
                self.all_rows(source)
        given = {n: self.one_row[n] if broadcasts and n in users else self.done[n] for n in node.all_input_nodes}
        if broadcasts and node.target is aten.matmul.default:
            given.update({n: self._as_matrix(n) for n in users})
        self.done[node] = self.graph.node_copy(node, lambda n: given[n])

    def all_rows(self, node: fx.Node) -> Any:
        """Return a value with all rows, expanding one row where it is a user value."""
        if node in self.done or node not in self.one_row:
            return self.copy(node)
        rows, value = self.row_axes[node], node.meta["val"]
        axis = rows.axis + (rows.outer > 1)
        one = self.one_row[node]
        if rows.outer > 1 or rows.inner > 1:
            one = self.call(aten.reshape.default, one, [1 if s == -1 else s for s in self.unfolded(value, rows)])
        shape: list[Any] = self.unfolded(value, rows)
        shape[axis] = self.rows
        self.done[node] = self.folded(self.call(aten.expand.default, one, shape), node)
        return self.done[node]

    def folded(self, new: fx.Node, node: fx.Node) -> fx.Node:
        """Fold a batch axis of its own back into the axis it was traced in."""
        rows = self.row_axes[node]
        if rows.outer == rows.inner == 1:
            return new
        sizes = [static(size) for size in node.meta["val"].shape]
        return self.call(aten.reshape.default, new, [*sizes[: rows.axis], -1, *sizes[rows.axis + 1 :]])

    def _broadcasts(self, node: fx.Node, users: list[fx.Node]) -> bool:
        if any(self.row_axes[n].outer > 1 or self.row_axes[n].inner > 1 for n in users):
            return False
        if node.target is aten.matmul.default:
            # The user's rows must be a batch of matrices, or the rows of one.
            return all(self.row_axes[n].axis < n.meta["val"].dim() - 2 for n in users)
        return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags

    def _as_matrix(self, node: fx.Node) -> fx.Node:
        """Drop the row axis of a user's batch of one matrix, [1, K, M] -> [K, M]."""
        one: fx.Node = self.one_row[node]
        return self.call(aten.squeeze.dims, one, [0]) if node.meta["val"].dim() == 3 else one
