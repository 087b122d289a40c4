"""Add nodes to a copy of a traced graph, keeping shapes, sides and constants consistent."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.utils import _pytree as pytree

from graphs.rows.sides import NodeSide, is_row_count
from graphs.trace.trace import Traced


class Rewriter:
    """A copy of a traced graph to which nodes are added; ``finish`` drops unused ones.

    ``sides`` has the side of every node. Constants are parameters, or slices of them that share their memory.
    ``folds``: parts of what is computed from constants are constants; else slices of what computes them, so that
    masks and positions follow the length of a history (``graphs.split.lengths``).
    """

    def __init__(self, traced: Traced, sides: Mapping[fx.Node, NodeSide], folds: bool = True) -> None:
        self.traced = traced
        self.folds = folds
        self.graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        self.graph.output(self.graph.graph_copy(traced.module.graph, copied))
        self.sides: dict[fx.Node, NodeSide] = {new: sides[old] for old, new in copied.items()}
        self.tensors: dict[str, Any] = {
            str(n.target): operator.attrgetter(str(n.target))(traced.module)
            for n in self.graph.nodes
            if n.op == "get_attr"
        }
        self.slices: dict[str, fx.Node] = {}
        values = (n.meta["val"] for n in self.graph.nodes if n.op == "placeholder")
        self.fake_mode = next(values).fake_mode

    def call(self, like: fx.Node, target: Any, *arguments: Any, **options: Any) -> fx.Node:
        """Insert ``target(*arguments, **options)`` before ``like``, attributed to the same module."""
        with self.graph.inserting_before(like):
            node = self.graph.call_function(target, arguments, options)
        node.meta = {k: v for k, v in like.meta.items() if k in ("nn_module_stack", "stack_trace")}
        values, keywords = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (arguments, options))
        # Without the dispatcher, pad fixes the number of rows, and before torch 2.13 matmul does too.
        with self.fake_mode, enable_python_dispatcher(), torch.no_grad():
            node.meta["val"] = target(*values, **keywords)
        self.side_of(node)
        return node

    def side_of(self, node: fx.Node) -> NodeSide:
        """Update and return the side of a call from its current inputs."""
        reached = {self.sides[n] for n in node.all_input_nodes}
        side: NodeSide = "item" if "item" in reached else "user" if "user" in reached else "neutral"
        self.sides[node] = "neutral" if is_row_count(node) else side
        return self.sides[node]

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Make every user of ``node`` read ``by`` instead."""
        node.replace_all_uses_with(by, delete_user_cb=lambda user: user is not by)

    def value(self, node: object) -> Tensor | None:
        """Return the value of a node that depends only on parameters, None for any other node."""
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr":
            found = self.tensors[str(node.target)]
            return found.detach() if isinstance(found, Tensor) else None
        if node.op != "call_function" or self.sides[node] != "neutral" or is_row_count(node):
            return None
        inputs = {n: self.value(n) for n in node.all_input_nodes}
        # Weights that are read when a graph is written are on the meta device, and do not combine with others.
        if any(v is None for v in inputs.values()) or len({v.is_meta for v in inputs.values() if v is not None}) > 1:
            return None
        arguments, options = pytree.tree_map_only(fx.Node, inputs.get, (node.args, node.kwargs))
        with torch.no_grad():
            result = node.target(*arguments, **options)  # type: ignore[operator]  # an aten overload
        return result if isinstance(result, Tensor) else None

    def constant(self, name: str, tensor: Tensor) -> fx.Node:
        """Return the node of a constant ``name``, numbered if another tensor has that name.

        Views of a parameter share its memory, and equal slices of it are one node.
        """
        for free in itertools.chain([name], (f"{name}{i}" for i in itertools.count(2))):
            if free not in self.tensors:
                break
            if free in self.slices and _same(self.tensors[free], tensor):
                return self.slices[free]
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.create_node("get_attr", free)
        with self.fake_mode:
            node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        self.tensors[free] = nn.Parameter(tensor, requires_grad=False)
        self.sides[node] = "neutral"
        self.slices[free] = node
        return node

    def name(self, node: fx.Node) -> str:
        """Return the name of the parameter that a constant is a view of, or of the node that makes it from none."""
        source = node
        while source.op != "get_attr":
            if not source.all_input_nodes:
                return source.name
            source = source.all_input_nodes[0]
        return str(source.target)

    def finish(self) -> Traced:
        """Return the rewritten model."""
        self.graph.eliminate_dead_code()
        for node in self.graph.nodes:
            # What stands in for a view's operand may have other strides.
            if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
                node.target = torch.ops.aten.reshape.default
        whole = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        for name, node in self.slices.items():
            # A slice is named below its parameter, which is an attribute itself if another node still reads it.
            parent, _, last = name.rpartition(".")
            if name in whole and parent in whole:
                node.target = f"{parent}_{last}"
                self.tensors[node.target] = self.tensors[name]
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        self.graph.lint()
        module = fx.GraphModule({name: self.tensors[name] for name in sorted(used)}, self.graph)
        return dataclasses.replace(self.traced, module=module)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)
