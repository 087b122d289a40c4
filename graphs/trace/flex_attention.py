"""``flex_attention`` written out: the products, the score_mod and mask_mod as ops over all scores, and a softmax.

A trace holds both functions as graphs of single elements. With the positions of heads, queries and keys along axes of
their own, the same ops broadcast to all scores, so that a causal mask_mod becomes a constant mask. The block mask
only says which of its blocks a kernel may skip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch import predispatch
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from graphs.base.errors import UgsepError
from graphs.rows.reach import ancestors
from graphs.trace.node_location import location_of

__all__ = ["write_out_attention"]

aten = torch.ops.aten
_FILLS = (aten.new_ones.default, aten.ones.default)
_SINGLE = (
    aten._to_copy.default, aten.to.dtype, aten.scalar_tensor.default, aten.where.ScalarOther, aten.where.ScalarSelf,
    aten.where.Scalar, *_FILLS,
)  # fmt: skip
# How a trace writes ``table[h, q]`` of such a function.
_INDEX = "_trace_wrapped_higher_order_op.ModIndex"
_LOGIC: dict[Any, Any] = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor, aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
}  # fmt: skip
_NESTING = ("lazy_load_decompositions", "_vmap_increment_nesting", "_vmap_decrement_nesting")


@dataclass(frozen=True)
class _Part:
    """The elements of a table at some indices of its first axes: the rest is indexed later."""

    table: fx.Node
    indices: tuple[fx.Node, ...]


def write_out_attention(exported: ExportedProgram) -> None:
    """Replace calls of ``flex_attention`` in a trace, in place.

    Raises:
        UgsepError: a score_mod or mask_mod that computes with more than single elements.
    """
    graph = exported.graph
    calls = list(graph.find_nodes(op="call_function", target=torch.ops.higher_order.flex_attention))
    if not calls:
        return
    unused: list[fx.Node] = []
    for node in calls:
        written = _Written(exported.graph_module, node)
        values = written.attend()
        unused += [n for n in pytree.tree_leaves(node.args[3:5]) if isinstance(n, fx.Node)]
        for reader in list(node.users):
            if reader.users:
                value = values(int(reader.args[1]))
                reader.replace_all_uses_with(value)
                exported.graph_signature.replace_all_uses(reader.name, value.name)
            graph.erase_node(reader)
        graph.erase_node(node)
    _drop(graph, unused)
    exported.graph_module.recompile()


class _Written:
    """One call of ``flex_attention``, before which nodes are added."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self.module, self.node, self.graph = module, node, module.graph
        mode = detect_fake_mode([n.meta["val"] for n in node.all_input_nodes if "val" in n.meta])
        assert mode is not None
        self.mode = mode

    def call(self, target: Any, *arguments: Any, **options: Any) -> fx.Node:
        """Add a call, attributed to the module of the attention."""
        with self.graph.inserting_before(self.node):
            node = self.graph.call_function(target, arguments, options)
        node.meta = {k: v for k, v in self.node.meta.items() if k in ("nn_module_stack", "stack_trace")}
        values, keywords = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (arguments, options))
        with self.mode, enable_python_dispatcher(), torch.no_grad():
            node.meta["val"] = target(*values, **keywords)
        return node

    def attend(self) -> Any:
        """Return a function from the position of a result (output, log-sum-exp, maximum) to its node."""
        query, key, value, score_mod, block_mask, scale = self.node.args[:6]
        buffers, mask_buffers = self.node.args[7:9]
        assert isinstance(block_mask, (list, tuple))
        assert isinstance(buffers, (list, tuple))
        assert isinstance(mask_buffers, (list, tuple))
        assert isinstance(query, fx.Node)
        assert isinstance(key, fx.Node)
        heads, length = (int(s) for s in query.meta["val"].shape[1:3])
        groups, keys = heads // int(key.meta["val"].shape[1]), int(key.meta["val"].shape[2])
        at = _Positions(self, query, heads, length, keys)
        everything = self.result_of(block_mask[-1]).target in _FILLS
        seen = None if everything else self.inlined(block_mask[-1], at.each(), mask_buffers)
        only_output = all(r.args[1] == 0 for r in self.node.users if r.users)
        score = next(iter(self.graph_of(score_mod).nodes))
        if self.result_of(score_mod) is score and only_output:
            shared = {"enable_gqa": True} if groups > 1 else {}
            if seen is not None and seen.meta["val"].dim() < 2:
                seen = self.call(aten.expand.default, seen, [length, keys])
            out = self.call(
                aten.scaled_dot_product_attention.default, query, key, value, seen, 0.0, False, scale=scale, **shared
            )
            return lambda position: out
        if groups > 1:
            key, value = (self.call(aten.repeat_interleave.self_int, n, groups, 1) for n in (key, value))
        turned = self.call(aten.transpose.int, key, -2, -1)
        scores = self.call(aten.mul.Scalar, self.call(aten.matmul.default, query, turned), scale)  # [N, H, Q, K]
        scores = self.inlined(score_mod, [lambda: scores, *at.each()], buffers)
        if seen is not None:
            scores = self.call(aten.masked_fill.Scalar, scores, self.call(aten.logical_not.default, seen), -math.inf)

        def result(position: int) -> fx.Node:
            if position == 0:
                return self.call(aten.matmul.default, self.call(aten._safe_softmax.default, scores, -1), value)
            if position == 1:
                found = self.call(aten.logsumexp.default, scores, [-1])
            else:
                found = self.call(aten.amax.default, scores, [-1])
            return self.call(aten.div.Scalar, found, math.log(2))  # as the kernels return them

        return result

    def graph_of(self, mod: Any) -> fx.Graph:
        """Return the graph of a score_mod or mask_mod."""
        found = self.module.get_submodule(str(mod.target))
        assert isinstance(found, fx.GraphModule)
        return found.graph

    def result_of(self, mod: Any) -> fx.Node:
        """Return what a score_mod or mask_mod returns."""
        output = next(n for n in self.graph_of(mod).nodes if n.op == "output")
        result = output.args[0]
        assert isinstance(result, fx.Node)
        return result

    def inlined(self, mod: Any, positions: list[Callable[[], fx.Node]], buffers: Any) -> fx.Node:
        """Add the ops of a score_mod or mask_mod, on positions that are made if they are read."""
        pending: list[Any] = [*positions, *buffers]
        made: dict[fx.Node, Any] = {}
        for node in self.graph_of(mod).nodes:
            if node.op == "placeholder":
                given = pending.pop(0)
                made[node] = given() if node.users and callable(given) else given
            elif node.op == "call_function" and node.users:
                made[node] = self.copied(node, made)
        return self.whole(made[self.result_of(mod)])

    def copied(self, node: fx.Node, made: dict[fx.Node, Any]) -> Any:
        """Add an op of single elements, for all of them."""
        if node.target is torch.ops.higher_order.flat_apply and str(node.args[2]).endswith(_INDEX):
            table, *indices = (made[n] if isinstance(n, fx.Node) else n for n in node.args[3:])
            return self.indexed(table, indices)
        if node.target is aten.index.Tensor:
            return self.indexed(made[node.args[0]], [made[n] for n in node.args[1]])  # type: ignore[union-attr, index]  # nodes
        single = isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.pointwise in node.target.tags or node.target in _LOGIC or node.target in _SINGLE
        )
        if not single:
            self.refuse()
        arguments, options = pytree.tree_map_only(fx.Node, lambda n: self.whole(made[n]), (node.args, node.kwargs))
        return self.call(_LOGIC.get(node.target, node.target), *arguments, **options)

    def indexed(self, table: Any, indices: list[Any]) -> Any:
        """Look up elements of a table, or note the first of its indices."""
        if isinstance(table, _Part):
            table, indices = table.table, [*table.indices, *indices]
        if not all(isinstance(n, fx.Node) for n in (table, *indices)) or any(
            n.meta["val"].dtype is torch.bool for n in indices
        ):
            self.refuse()
        if table.meta["val"].dim() > len(indices):
            return _Part(table, tuple(indices))
        return self.call(aten.index.Tensor, table, list(indices))

    def whole(self, value: Any) -> fx.Node:
        """Return a value of single elements."""
        if not isinstance(value, fx.Node):
            self.refuse()
        return value  # type: ignore[no-any-return]  # checked

    def refuse(self) -> None:
        raise UgsepError(
            f"{location_of(self.node)} has a score_mod or mask_mod that computes with more than single elements; "
            "compute it before, and index the result"
        )


@dataclass
class _Positions:
    """Where each score is, along axes of their own, [N, 1, 1, 1] to [K], made if they are read."""

    written: _Written
    rows: fx.Node
    heads: int
    queries: int
    keys: int

    def each(self) -> list[Callable[[], fx.Node]]:
        return [self.batch, self.head, self.query, self.key]

    def batch(self) -> fx.Node:
        return self._along(self.written.call(aten.sym_size.int, self.rows, 0), 3)

    def head(self) -> fx.Node:
        return self._along(self.heads, 2)

    def query(self) -> fx.Node:
        return self._along(self.queries, 1)

    def key(self) -> fx.Node:
        return self._along(self.keys, 0)

    def _along(self, size: Any, after: int) -> fx.Node:
        place = self.written.call(aten.arange.default, size, device=self.rows.meta["val"].device)
        return self.written.call(aten.view.default, place, [-1, *[1] * after]) if after else place


def _drop(graph: fx.Graph, unused: list[fx.Node]) -> None:
    """Erase what only made block masks: PyTorch's ``vmap`` over a mask_mod, which writes in place."""
    made = ancestors(unused)
    batched: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is predispatch._add_batch_dim or any(n in batched for n in node.all_input_nodes):
            batched.add(node)
    for node in reversed(list(graph.nodes)):
        if node.op not in ("call_function", "get_attr") or node.users:
            continue
        checks = node.target is aten._assert_tensor_metadata.default and node.args[0] in made
        writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if checks or (node in made and (node in batched or not writes)):
            graph.erase_node(node)
    if not any(n.target is predispatch._add_batch_dim for n in graph.nodes):
        nesting = [getattr(predispatch, name) for name in _NESTING if hasattr(predispatch, name)]
        for node in [n for n in graph.nodes if n.target in nesting]:
            graph.erase_node(node)
