"""Products of data with data whose rows are positions: attention, with a softmax or pointwise, over [user | item].

The user's rows of ``P V`` need no item if ``P`` is 0, or hidden before its softmax, where they meet item positions:
a causal mask over [history | item] does that. Then

    rows of the user   softmax(U K_U^T) V_U                         once per request
    rows of the item   softmax([G K_U^T | G K_G^T]) [V_U; V_G]      per candidate, as P_U V_U + P_G V_G

so that the keys and values of the user's positions are read, never joined with a candidate's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphs.base.cost import gemm_flops, nbytes, numel
from graphs.split.blocks.positions import parted, separated
from graphs.split.blocks.regions import Regions
from graphs.split.blocks.written_out import attention
from graphs.split.column_provenance import is_user

aten = torch.ops.aten

__all__ = ["PRODUCTS", "Separated", "data_product", "is_data_product", "read_once"]

PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.scaled_dot_product_attention.default)


SOFTMAXES = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)


@dataclass(frozen=True)
class Separated:
    """A product of data with data: the user's share of its rows, FLOPs saved per candidate, and bytes of the rows.

    ``apart`` is false for one that stays per candidate because the user's rows see item positions: then
    ``saved_flops`` is what a mask would save, and ``finite`` says that there is one, of a number that does not hide
    them for certain.
    """

    share: float
    saved_flops: int
    state_bytes: int
    apart: bool
    finite: bool = False


def is_data_product(node: fx.Node) -> bool:
    """Return whether the node may multiply data with data."""
    return node.op == "call_function" and node.target in PRODUCTS


def data_product(regions: Regions, node: fx.Node) -> Separated | None:
    """Separate the user's rows of an item-side product if they need no item; replace the product by both parts."""
    product = node
    if node.target is aten.scaled_dot_product_attention.default:
        written = attention(regions, node)
        if written is None:
            return None
        product = written
    right = product.args[1]
    assert isinstance(right, fx.Node)
    rank = product.meta["val"].dim()
    found = regions.known.get(right)
    rows = product.meta["val"].shape[-2] if rank >= 2 else 0
    if found is None or not found.plain or found.axis != right.meta["val"].dim() - 2 or sum(found.sizes()) != rows:
        parts = separated(regions, product)
        if parts is not None:
            regions.known[node] = parts
        return None
    ends = [0, *itertools.accumulate(found.sizes())]
    parts = parted(regions, product, rank - 2, ends)
    users = found.segments if parts is None else parts.segments
    axis = found.axis if parts is None else parts.axis
    inside = sum(int(s.meta["val"].shape[axis]) for s in users if is_user(regions.rewriter, s))
    share = inside / sum(found.sizes())
    saved = int((gemm_flops(product) + _scores_flops(regions, product)) * share)
    if parts is None:
        return Separated(share, saved, int(nbytes(node) * share), apart=False, finite=_is_masked(regions, product))
    whole = regions.joined(node, list(parts.segments), parts.axis)
    regions.rewriter.replace(node, whole)
    regions.known[node] = regions.known[whole] = parts
    return Separated(share, saved, int(nbytes(node) * share), apart=True)


def _scores_flops(regions: Regions, product: fx.Node) -> int:
    """Return the FLOPs of the product that the left operand of an attention's second product comes from."""
    node = product.args[0]
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in (aten.matmul.default, aten.bmm.default):
            return gemm_flops(node)
        sources = [n for n in node.all_input_nodes if numel_of(n) >= numel_of(node)]
        data = [n for n in sources if regions.rewriter.sides[n] == "item"]
        node = data[0] if data else None
    return 0


def _is_masked(regions: Regions, product: fx.Node) -> bool:
    """Return whether numbers that are not -inf lower some scores of an attention, for every input."""
    node = product.args[0]
    while isinstance(node, fx.Node) and node.op == "call_function" and node.target not in SOFTMAXES:
        node = node.args[0] if node.args else None
    scores = node.args[0] if isinstance(node, fx.Node) and node.op == "call_function" else None
    finite = regions.values.finite(scores) if isinstance(scores, fx.Node) else None
    return finite is not None and bool(finite.any())


def numel_of(node: fx.Node) -> int:
    """Return the elements per row of a node, 0 for a size."""
    value = node.meta.get("val")
    return numel(value) if isinstance(value, Tensor) else 0


def read_once(regions: Regions) -> None:
    """Replace products whose segments are all read by the join of those, so that nothing is computed twice."""
    rewriter = regions.rewriter
    graph = rewriter.graph
    live: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node.op == "output" or node in live:
            live.add(node)
            live.update(node.all_input_nodes)
    for node in [n for n in graph.nodes if n in live and n in regions.known]:
        found = regions.known[node]
        if found.plain and gemm_flops(node) and node.users and all(s in live for s in found.segments):
            rewriter.replace(node, regions.joined(node, list(found.segments), found.axis))
