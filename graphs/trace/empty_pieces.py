"""Joins without their empty pieces: torch lets ``cat`` join a tensor of shape [0] to one of any rank."""

from __future__ import annotations

import torch
from torch import fx


def drop_empty_pieces(graph: fx.Graph) -> None:
    """Take tensors of shape [0] out of every ``cat`` of tensors of another rank, in place.

    The cache of transformers starts as such a tensor, and every layer joins its keys and values to it. It has no axis
    to join along, no row axis, and no positions.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        pieces = node.args[0]
        assert isinstance(pieces, (list, tuple))
        kept = [p for p in pieces if not (isinstance(p, fx.Node) and _is_empty(p.meta["val"]))]
        rank = node.meta["val"].dim()
        if len(kept) == len(pieces) or not kept or rank == 1:
            continue
        if len(kept) == 1:
            assert isinstance(kept[0], fx.Node)
            node.replace_all_uses_with(kept[0])
            graph.erase_node(node)
        else:
            node.args = (kept, *node.args[1:])


def _is_empty(value: torch.Tensor) -> bool:
    """Check for a vector of no elements; a size that depends on data is not known to be 0."""
    return value.dim() == 1 and isinstance(value.shape[0], int) and value.shape[0] == 0
