"""The side of every node of a traced graph: user, item, or neutral (only parameters and row counts)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import fx

from graphs.base.names import Side

NodeSide = Literal["user", "item", "neutral"]


def is_row_count(node: fx.Node) -> bool:
    """Return whether the node is a shape, not data: a size read off a tensor or arithmetic on such sizes."""
    return node.op == "call_function" and not _holds_tensor(node.meta.get("val"))


def _holds_tensor(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, (tuple, list)) and any(_holds_tensor(v) for v in value)


def assign_sides(graph: fx.Graph, sides: Mapping[str, Side]) -> dict[fx.Node, NodeSide]:
    """Return the side of every node: item if an item input reaches it, else user if a user input does.

    ``sides`` maps placeholder targets to their side. Sizes are neutral even when read off an input, since each
    subgraph counts its own rows.
    """
    found: dict[fx.Node, NodeSide] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = sides[str(node.target)]
            continue
        reached = {found[n] for n in node.all_input_nodes}
        if node.op != "output" and is_row_count(node):
            found[node] = "neutral"
        elif "item" in reached:
            found[node] = "item"
        else:
            found[node] = "user" if "user" in reached else "neutral"
    return found
