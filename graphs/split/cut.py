"""Choose the user state: the smallest set of tensors from which the item side can be computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from graphs.base.cost import gemm_flops, nbytes
from graphs.rows.reach import reached
from graphs.rows.sides import NodeSide

aten = torch.ops.aten

# Data movement: like element-wise ops, cheap enough to recompute per candidate if the input is smaller than the
# output. Products, lookups and reductions are not.
_MOVES = {
    "view", "reshape", "_unsafe_view", "transpose", "permute", "unsqueeze", "squeeze", "expand", "select", "slice",
    "cat", "stack", "split", "split_with_sizes", "chunk", "unbind", "clone", "contiguous", "_to_copy", "to", "repeat",
    "flatten", "unflatten", "t", "detach", "alias", "constant_pad_nd", "pad",
    "repeat_interleave",
}  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """State nodes in graph order, user nodes recomputed per candidate, and bytes of the cut without recomputation."""

    state: tuple[fx.Node, ...]
    recomputed: tuple[fx.Node, ...]
    plain_bytes: int


def is_cheap(node: fx.Node) -> bool:
    """Return whether a user-side node may be recomputed per candidate: element-wise or data movement."""
    if node.op != "call_function" or gemm_flops(node):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    if node.target.namespace != "aten":
        return False
    name = node.target._schema.name.split("::")[1]
    return name in _MOVES or torch.Tag.pointwise in node.target.tags


def choose_state(graph: fx.Graph, sides: Mapping[fx.Node, NodeSide]) -> Cut:
    """Return the minimum cut by bytes per user between the user inputs and the item side.

    Any user node may cross the cut at the cost of its bytes; cheap ones may instead be recomputed per candidate from
    nodes that cross before them. Of equal cuts, the one nearest the item side wins, so that as much as possible runs
    once per request.
    """
    users = [n for n in graph.nodes if sides[n] == "user" and n.op != "output"]
    needed = [n for n in users if any(sides[m] == "item" or m.op == "output" for m in n.users)]
    # A tuple cannot cross, but its elements can.
    flow: nx.DiGraph[object] = nx.DiGraph()
    flow.add_nodes_from(["source", "sink"])
    for node in users:
        tensor = isinstance(node.meta.get("val"), torch.Tensor)
        if tensor:
            flow.add_edge((node.name, "in"), (node.name, "out"), capacity=nbytes(node))
        else:
            flow.add_edge((node.name, "in"), (node.name, "out"))
        inputs = [n for n in node.all_input_nodes if sides[n] == "user"]
        if is_cheap(node) and inputs:
            for source in inputs:
                flow.add_edge((source.name, "out"), (node.name, "in"))
        else:
            flow.add_edge("source", (node.name, "in"))
    for node in needed:
        flow.add_edge((node.name, "out"), "sink")
    _, (before, after) = nx.minimum_cut(flow, "source", "sink")
    state = tuple(n for n in users if (n.name, "in") in before and (n.name, "out") in after)
    recomputed = tuple(n for n in users if (n.name, "in") in after and (n.name, "out") in after)
    return Cut(state, _reached(needed, recomputed, state, sides), sum(_bytes(n) for n in needed))


def _bytes(node: fx.Node) -> int:
    return nbytes(node) if isinstance(node.meta.get("val"), torch.Tensor) else 0


def _reached(
    needed: list[fx.Node],
    recomputed: tuple[fx.Node, ...],
    state: tuple[fx.Node, ...],
    sides: Mapping[fx.Node, NodeSide],
) -> tuple[fx.Node, ...]:
    """Keep the recomputed nodes that the item side needs, in graph order."""
    wanted = reached(
        (n for n in needed if n not in state),
        lambda node: (n for n in node.all_input_nodes if sides[n] == "user" and n not in state),
    )
    return tuple(n for n in recomputed if n in wanted)
