"""Build the user half and the item half of a traced graph around a chosen cut."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from graphs.cut import Cut
from graphs.errors import UgsepError
from graphs.sides import NodeSide, is_row_count
from graphs.trace import Traced, identifier

aten = torch.ops.aten
USER_INDEX = "user_index"


def batch_axis(node: fx.Node) -> int:
    """Return the axis of a traced tensor that is the batch.

    Raises:
        UgsepError: no axis, or several, or one where the batch is folded with another axis.
    """
    value = node.meta["val"]
    axes = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
    if (
        len(axes) != 1
        or len(value.shape[axes[0]].node.expr.free_symbols) != 1
        or value.shape[axes[0]].node.expr.is_Mul
    ):
        shape = tuple(str(s) for s in value.shape)
        raise UgsepError(f"{where(node)} crosses the cut with shape {shape}; keep the batch one axis of its own")
    return axes[0]


def where(node: fx.Node) -> str:
    """Return a node's op, module path and source line, for error messages."""
    path = module_path(node)
    line = ""
    for text in reversed((node.meta.get("stack_trace") or "").splitlines()):
        if text.strip().startswith("File"):
            parts = text.strip().split('"')
            line = f" ({parts[1].rsplit('/', 1)[-1]}:{parts[2].split('line ')[1].split(',')[0]})"
            break
    target = node.target if node.op == "placeholder" else str(node.target).removeprefix("aten.")
    return f"{target} in {path or 'the model'}{line}"


def module_path(node: fx.Node) -> str:
    """Return the dotted path of the module a node was traced in, '' at the top."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self']").strip(".") if stack else ""


def state_names(state: tuple[fx.Node, ...]) -> tuple[str, ...]:
    """Name state tensors by the module they come from (or the input), numbered where that is not unique."""
    names: list[str] = []
    for node in state:
        source = node.name if node.op == "placeholder" else module_path(node) or "model"
        base = identifier("state_" + source.replace(".", "_"))
        count = sum(1 for n in names if n == base or n.rsplit("__", 1)[0] == base)
        names.append(f"{base}__{count}" if count else base)
    return tuple(names)


class _Copier:
    """Copies nodes of the traced graph into a half, with that half's own row count."""

    def __init__(self, traced: Traced) -> None:
        self.graph = fx.Graph()
        self.done: dict[fx.Node, fx.Node] = {}
        self.rows: fx.Node | None = None
        self.traced = traced

    def placeholder(self, name: str) -> fx.Node:
        return self.graph.placeholder(identifier(name))

    def copy(self, node: fx.Node) -> fx.Node:
        """Copy a node and the neutral nodes it needs; everything else it needs was copied before."""
        if node in self.done:
            return self.done[node]
        if node.target is aten.sym_size.int:
            # The only symbolic size is the batch, and each half counts its own rows.
            if self.rows is None:
                raise UgsepError("a half has no input to read its row count from; name an input of that side")
            self.done[node] = self.rows
            return self.rows
        for source in node.all_input_nodes:
            self.copy(source)
        new = self.graph.node_copy(node, lambda n: self.done[n])
        self.done[node] = new
        return new

    def count_rows(self, tensor: fx.Node) -> None:
        self.rows = self.graph.call_function(aten.sym_size.int, (tensor, 0))

    def finish(self, outputs: tuple[fx.Node, ...]) -> fx.GraphModule:
        self.graph.output(outputs)
        self.graph.eliminate_dead_code()
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        return fx.GraphModule(self.traced.module, self.graph)


def build_user_half(
    traced: Traced, sides: Mapping[fx.Node, NodeSide], cut: Cut
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return the user half, state tensors batch first [U, ...], and their names."""
    copier = _Copier(traced)
    originals = [n for n in traced.module.graph.nodes if n.op == "placeholder" and sides[n] == "user"]
    for node in originals:
        copier.done[node] = copier.placeholder(node.name)
    copier.count_rows(copier.done[originals[0]])
    wanted = _ancestors(cut.state, stop=())
    for node in traced.module.graph.nodes:
        if node in wanted and node.op != "placeholder" and not is_row_count(node):
            copier.copy(node)
    outputs = []
    for node in cut.state:
        axis = batch_axis(node)
        new = copier.done[node]
        outputs.append(copier.graph.call_function(aten.movedim.int, (new, axis, 0)) if axis else new)
    return copier.finish(tuple(outputs)), state_names(cut.state)


def build_item_half(
    traced: Traced, sides: Mapping[fx.Node, NodeSide], cut: Cut, names: tuple[str, ...]
) -> fx.GraphModule:
    """Return the item half: item inputs [N, ...], state [U, ...], user_index [N] -> the model's outputs [N, ...]."""
    copier = _Copier(traced)
    originals = [n for n in traced.module.graph.nodes if n.op == "placeholder" and sides[n] == "item"]
    for node in originals:
        copier.done[node] = copier.placeholder(node.name)
    state = [copier.placeholder(name) for name in names]
    index = copier.placeholder(USER_INDEX)
    copier.count_rows(index)
    for node, given in zip(cut.state, state, strict=True):
        axis = batch_axis(node)
        # Move the batch axis on the U rows, which are few, and gather to the N candidates last.
        moved = copier.graph.call_function(aten.movedim.int, (given, 0, axis)) if axis else given
        copier.done[node] = copier.graph.call_function(aten.index_select.default, (moved, axis, index))
    recomputed = set(cut.recomputed)
    result = next(n for n in traced.module.graph.nodes if n.op == "output")
    for node in traced.module.graph.nodes:
        if node.op == "call_function" and (sides[node] == "item" or node in recomputed):
            copier.copy(node)
    outputs = tuple(copier.copy(n) for n in result.args[0])
    return copier.finish(outputs)


def _ancestors(nodes: tuple[fx.Node, ...], stop: tuple[fx.Node, ...]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found and node not in stop:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
