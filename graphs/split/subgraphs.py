"""Build the user graph and the item graph of a traced model around a chosen cut."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphs.base.cost import static
from graphs.base.names import USER_INDEX
from graphs.rows.layout import Rows
from graphs.rows.reach import ancestors
from graphs.rows.sides import NodeSide, is_row_count
from graphs.split.cut import Cut
from graphs.trace.node_location import module_path
from graphs.trace.trace import Traced, identifier

aten = torch.ops.aten


def state_row_shape(value: torch.Tensor, rows: Rows) -> tuple[int, ...]:
    """Return the shape of one user's state tensor as it crosses the cut, without the batch axis."""
    before, after = value.shape[: rows.axis], value.shape[rows.axis + 1 :]
    folded = ([rows.outer] if rows.outer > 1 else []) + ([rows.inner] if rows.inner > 1 else [])
    return tuple(static(size) for size in (*before, *folded, *after))


def state_names(state: tuple[fx.Node, ...], taken: tuple[str, ...]) -> tuple[str, ...]:
    """Name state tensors by the module they come from (or the input), numbered if that is not unique.

    ``taken`` are the model's inputs, which the item graph may take in addition to the state.
    """
    names: list[str] = []
    for node in state:
        source = str(node.target) if node.op == "placeholder" else module_path(node) or "model"
        names.append(identifier(f"state_{source}", (*names, *taken, USER_INDEX)))
    return tuple(names)


class Copier:
    """Copies nodes of the traced graph into a subgraph that counts its own rows."""

    def __init__(self, traced: Traced) -> None:
        self.graph = fx.Graph()
        self.done: dict[fx.Node, fx.Node] = {}
        self.rows: fx.Node | None = None
        self.traced = traced

    def placeholder(self, name: str) -> fx.Node:
        """Add an input."""
        return self.graph.placeholder(identifier(name))

    def copy(self, node: fx.Node) -> fx.Node:
        """Copy a node and the neutral nodes it needs; its other inputs have been copied before."""
        if node in self.done:
            return self.done[node]
        if node.target is aten.sym_size.int:
            # The only symbol is the batch. Each subgraph counts its own rows; a folded axis is a multiple of them.
            assert self.rows is not None
            times = static(node.meta["val"])
            size = self.rows if times == 1 else self.graph.call_function(operator.mul, (self.rows, times))
            self.done[node] = size
            return size
        for source in node.all_input_nodes:
            self.copy(source)
        new = self.graph.node_copy(node, lambda n: self.done[n])
        self.done[node] = new
        return new

    def count_rows(self, tensor: fx.Node) -> None:
        """Read the row count off the first axis of an input."""
        self.rows = self.graph.call_function(aten.sym_size.int, (tensor, 0))

    def to_batch_first(self, new: fx.Node, value: torch.Tensor, rows: Rows) -> fx.Node:
        """Move a state tensor's batch axis to the front, unfolded."""
        axis = rows.axis
        if rows.outer > 1 or rows.inner > 1:
            new = self.call(aten.reshape.default, new, self.unfolded(value, rows))
            axis += rows.outer > 1
        return self.call(aten.movedim.int, new, axis, 0) if axis else new

    def gathered(self, given: fx.Node, index: fx.Node, value: torch.Tensor, rows: Rows) -> fx.Node:
        """Gather a state tensor [U, ...] to the candidates, in the layout of the traced graph."""
        axis = rows.axis + (rows.outer > 1)
        # Move the batch axis of the few user rows, and only then gather to the N candidates.
        moved = self.call(aten.movedim.int, given, 0, axis) if axis else given
        new = self.call(aten.index_select.default, moved, axis, index)
        if rows.outer == rows.inner == 1:
            return new
        sizes = [static(size) for size in value.shape]
        return self.call(aten.reshape.default, new, [*sizes[: rows.axis], -1, *sizes[rows.axis + 1 :]])

    def unfolded(self, value: torch.Tensor, rows: Rows) -> list[int]:
        """Return the shape in which the factors of a folded batch axis are separate axes; -1 is the batch."""
        folded = [*([rows.outer] if rows.outer > 1 else []), -1, *([rows.inner] if rows.inner > 1 else [])]
        sizes = [static(size) for size in value.shape]
        return [*sizes[: rows.axis], *folded, *sizes[rows.axis + 1 :]]

    def call(self, target: Any, *arguments: Any) -> fx.Node:
        """Add a call."""
        return self.graph.call_function(target, arguments)

    def finish(self, outputs: tuple[fx.Node, ...]) -> fx.GraphModule:
        """Return the subgraph without dead code and unused inputs."""
        self.graph.output(outputs)
        self.graph.eliminate_dead_code()
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        return fx.GraphModule(self.traced.module, self.graph)


def build_user_subgraph(
    traced: Traced, sides: Mapping[fx.Node, NodeSide], cut: Cut, rows: Mapping[fx.Node, Rows]
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return the user graph, state tensors batch first [U, ...], and their names."""
    copier = Copier(traced)
    originals = [n for n in traced.module.graph.nodes if n.op == "placeholder" and sides[n] == "user"]
    for node in originals:
        copier.done[node] = copier.placeholder(str(node.target))
    copier.count_rows(copier.done[originals[0]])
    wanted = ancestors(cut.state)
    for node in traced.module.graph.nodes:
        if node in wanted and node.op != "placeholder" and not is_row_count(node):
            copier.copy(node)
    outputs = [copier.to_batch_first(copier.done[n], n.meta["val"], rows[n]) for n in cut.state]
    return copier.finish(tuple(outputs)), state_names(cut.state, traced.inputs)


def build_item_subgraph(
    traced: Traced, sides: Mapping[fx.Node, NodeSide], cut: Cut, rows: Mapping[fx.Node, Rows], names: tuple[str, ...]
) -> fx.GraphModule:
    """Return the item graph: item inputs [N, ...], state [U, ...], user_index [N] -> the model's outputs [N, ...]."""
    copier = Copier(traced)
    originals = [n for n in traced.module.graph.nodes if n.op == "placeholder" and sides[n] == "item"]
    for node in originals:
        copier.done[node] = copier.placeholder(str(node.target))
    state = [copier.placeholder(name) for name in names]
    index = copier.placeholder(USER_INDEX)
    copier.count_rows(index)
    for node, given in zip(cut.state, state, strict=True):
        copier.done[node] = copier.gathered(given, index, node.meta["val"], rows[node])
    recomputed = set(cut.recomputed)
    result = next(n for n in traced.module.graph.nodes if n.op == "output")
    for node in traced.module.graph.nodes:
        if node.op == "call_function" and (sides[node] == "item" or node in recomputed):
            copier.copy(node)
    outputs = tuple(copier.copy(n) for n in result.args[0])
    return copier.finish(outputs)
