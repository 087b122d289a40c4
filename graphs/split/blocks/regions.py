"""A part of a tensor, computed from the parts of the operands that it needs: slices pushed up through the graph.

Where a tensor is a join of user and item positions, the part of a result at the user's positions is computed from the
user's part of the operands, so that it needs no item. A product of data with data has rows and columns:

    [U; G] [K_U; K_G]^T = [U K_U^T, U K_G^T; G K_U^T, G K_G^T]      P [V_U; V_G] = P_U V_U + P_G V_G

and blocks of P that a mask hides (before a softmax) or sets to zero (after it) are left out with the rows of V that
they meet.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from graphs.split.blocks import region_moves as moves
from graphs.split.blocks.known_values import KnownValues, Ranges, taken
from graphs.split.column_provenance import Provenance, is_user, provenance_of
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten

# More alternations between user and item positions than this are not followed: every one is a node of its own.
MOST_RUNS = 64

Cut = Mapping[int, Ranges]


@dataclass
class Regions:
    """Parts of nodes, made on demand and once; ``known`` has the segments of the nodes visited so far.

    Nodes outside of ``within``, if given, are computed whole anyway: their parts are slices.
    """

    rewriter: Rewriter
    known: dict[fx.Node, Provenance]
    values: KnownValues
    within: Collection[fx.Node] | None = None
    made: dict[tuple[fx.Node, tuple[tuple[int, Ranges], ...]], fx.Node] = field(default_factory=dict)

    def of(self, like: fx.Node, node: fx.Node, wanted: Cut) -> fx.Node:
        """Return the node with the wanted ranges of some axes, none the batch's; added before ``like``."""
        shape = node.meta["val"].shape
        cut = {axis: tuple(r) for axis, r in wanted.items() if tuple(r) != ((0, int(shape[axis])),)}
        if not cut:
            return node
        key = (node, tuple(sorted(cut.items())))
        if key not in self.made:
            self.made[key] = self._part(like, node, cut)
        return self.made[key]

    def operand(self, like: fx.Node, node: fx.Node, rank: int, cut: Cut) -> fx.Node:
        """Return the part of a tensor that is broadcast to ``rank`` axes, which the part of the result needs."""
        if not isinstance(node.meta.get("val"), Tensor):
            return node
        shape = node.meta["val"].shape
        shift = rank - len(shape)
        return self.of(like, node, {a - shift: r for a, r in cut.items() if a >= shift and shape[a - shift] != 1})

    def followed(self, node: fx.Node) -> fx.Node:
        """Return an added node after noting its segments."""
        found = provenance_of(self.rewriter, node, self.known)
        if found is not None:
            self.known[node] = found
        return node

    def groups(self, node: fx.Node, axis: int, ranges: Ranges) -> list[Ranges]:
        """Cut ranges of an axis where its positions change sides."""
        found = self.known.get(node)
        if found is None or not found.plain or found.axis != axis:
            return [ranges]
        groups: list[tuple[bool, list[tuple[int, int]]]] = []
        at = 0
        for segment, length in zip(found.segments, found.sizes(), strict=True):
            user = is_user(self.rewriter, segment)
            inside = [(max(a, at), min(b, at + length)) for a, b in ranges if a < at + length and b > at]
            if inside and groups and groups[-1][0] == user:
                groups[-1][1].extend(inside)
            elif inside:
                groups.append((user, inside))
            at += length
        return [_closed(inside) for _, inside in groups]

    def joined(self, like: fx.Node, pieces: list[fx.Node], axis: int) -> fx.Node:
        """Return the pieces side by side."""
        return pieces[0] if len(pieces) == 1 else self.rewriter.call(like, aten.cat.default, pieces, axis)

    def _part(self, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node:
        constant = self.rewriter.value(node)
        if constant is not None and self.rewriter.folds:
            return self.rewriter.constant(f"{self.rewriter.name(node)}.part", taken(constant, cut))
        found = self.known.get(node)
        if found is not None and found.plain and found.axis in cut:
            return self.of_segments(like, list(found.segments), found.axis, cut)
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        overload = isinstance(node.target, torch._ops.OpOverload)
        if rule is None and overload and torch.Tag.pointwise in node.target.tags:  # type: ignore[union-attr]  # an overload
            rule = _pointwise
        # What needs no item is computed once per request anyway, whole.
        computed = self.rewriter.sides[node] == "item" and (self.within is None or node in self.within)
        made = rule(self, like, node, cut) if rule is not None and computed else None
        if made is not None:
            return made
        for axis, ranges in cut.items():
            parts = [self.rewriter.call(like, aten.slice.Tensor, node, axis, low, high) for low, high in ranges]
            node = self.joined(like, parts, axis)
        return node

    def of_segments(self, like: fx.Node, segments: list[fx.Node], axis: int, cut: Cut) -> fx.Node:
        """Return the part of tensors joined along an axis, of those that have some of it."""
        rest = {a: r for a, r in cut.items() if a != axis}
        pieces = []
        for low, high in cut[axis]:
            at = 0
            for segment in segments:
                length = int(segment.meta["val"].shape[axis])
                a, b = max(low - at, 0), min(high - at, length)
                if a < b:
                    pieces.append(self.of(like, segment, {**rest, axis: ((a, b),)}))
                at += length
        return self.joined(like, pieces, axis)


def _closed(ranges: list[tuple[int, int]]) -> Ranges:
    """Join ranges that touch."""
    result: list[tuple[int, int]] = []
    for low, high in ranges:
        if result and result[-1][1] == low:
            result[-1] = (result[-1][0], high)
        else:
            result.append((low, high))
    return tuple(result)


def _pointwise(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    rank = moves.rank_of(node)
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self):
        chosen = _chosen(regions, like, node, cut)
        if chosen is not None:
            return chosen
    if node.target is aten.mul.Tensor:
        alone = _times_one(regions, like, node, cut)
        if alone is not None:
            return alone
    arguments, options = pytree.tree_map_only(
        fx.Node, lambda n: regions.operand(like, n, rank, cut), (node.args, node.kwargs)
    )
    return regions.rewriter.call(like, node.target, *arguments, **options)


def _chosen(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Leave a mask out that is known to choose one side for the whole part."""
    mask, yes, no = (node.args[i] for i in ((0, 1, 2) if node.target is aten.where.self else (1, 2, 0)))
    assert isinstance(mask, fx.Node)
    found = regions.values.operands(node)[mask]
    if found is None or not bool(taken(found.known, cut).all()):
        return None
    flags = taken(found.low, cut)
    side = yes if bool(flags.all()) else no if not bool(flags.any()) else None
    if not isinstance(side, fx.Node):
        return None
    whole = side.meta["val"].shape == node.meta["val"].shape and side.meta["val"].dtype == node.meta["val"].dtype
    return regions.of(like, side, cut) if whole else None


def _times_one(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Leave a factor out that is 1 for the whole part, as a mask that multiplies is where it hides nothing."""
    rank = moves.rank_of(node)
    for factor, other in (node.args, node.args[::-1]):
        value = regions.rewriter.value(factor)
        if value is None or value.is_meta or not isinstance(other, fx.Node):
            continue
        shift = rank - value.dim()
        own = {a - shift: r for a, r in cut.items() if a >= shift and value.shape[a - shift] != 1}
        whole = other.meta["val"].shape == node.meta["val"].shape
        if whole and other.meta["val"].dtype == node.meta["val"].dtype and bool((taken(value, own) == 1).all()):
            return regions.of(like, other, cut)
    return None


def _softmax(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Columns that are hidden from all rows of the part do not enter their softmax."""
    source, dim = moves.first(node), moves.rank_of(node) - 1
    if node.args[1] not in (-1, dim):
        return None
    if dim in cut:
        visible = seen(regions.values.hidden(source), source, cut)
        inside = torch.zeros_like(visible)
        for low, high in cut[dim]:
            inside[low:high] = True
        if bool((visible & ~inside).any()):
            return None
    return regions.rewriter.call(like, node.target, regions.of(like, source, cut), *node.args[1:], **node.kwargs)


def seen(hidden: Tensor | None, node: fx.Node, cut: Cut) -> Tensor:
    """Return which columns, positions of the last axis, some row of the part does not hide; bool [K]."""
    columns = int(node.meta["val"].shape[-1])
    if hidden is None:
        return torch.ones(columns, dtype=torch.bool)
    last = hidden.dim() - 1
    part = taken(hidden, {a: r for a, r in cut.items() if a != last})
    return ~part.flatten(0, -2).all(0).expand(columns)


def _product(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    left, right = node.args[:2]
    if (
        not isinstance(left, fx.Node)
        or not isinstance(right, fx.Node)
        or moves.rank_of(left) < 2
        or moves.rank_of(right) < 2
    ):
        return None
    rank = moves.rank_of(node)
    batch = {a: r for a, r in cut.items() if a < rank - 2}
    if batch:
        return None
    contracted, across = moves.rank_of(right) - 2, moves.rank_of(right) - 1
    rows = {moves.rank_of(left) - 2: cut[rank - 2]} if rank - 2 in cut else {}
    columns: Ranges = cut.get(rank - 1, ((0, int(right.meta["val"].shape[-1])),))
    found = regions.known.get(right)
    if found is not None and found.plain and found.axis == contracted:
        return _contracted(regions, like, node, rows, {across: columns})
    a = regions.of(like, left, rows)
    groups = regions.groups(right, across, columns)
    products = [regions.rewriter.call(like, node.target, a, regions.of(like, right, {across: g})) for g in groups]
    return regions.joined(like, products, rank - 1)


def _contracted(regions: Regions, like: fx.Node, node: fx.Node, rows: Cut, columns: Cut) -> fx.Node | None:
    """Sum the products with the user's rows and with the others, without those that meet zeros only."""
    left, right = node.args[:2]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    counts = seen(regions.values.zero(left), left, rows)
    axis = regions.known[right].axis
    ranges, at = [], 0
    for length in regions.known[right].sizes():
        if bool(counts[at : at + length].any()):
            ranges.append((at, at + length))
        at += length
    if not ranges:
        return None
    weights = regions.of(like, left, {**rows, moves.rank_of(left) - 1: _closed(ranges)})
    groups = regions.groups(right, axis, _closed(ranges))
    total: fx.Node | None = None
    at = 0
    for group in groups:
        length = sum(high - low for low, high in group)
        part = (
            weights
            if len(groups) == 1
            else regions.of(like, weights, {moves.rank_of(left) - 1: ((at, at + length),)})
        )
        term = regions.rewriter.call(like, node.target, part, regions.of(like, right, {**columns, axis: group}))
        total = term if total is None else regions.rewriter.call(like, aten.add.Tensor, total, term)
        at += length
    return total


_RULES: dict[Any, Callable[[Regions, fx.Node, fx.Node, Cut], fx.Node | None]] = {
    aten.softmax.int: _softmax, aten._softmax.default: _softmax, aten._safe_softmax.default: _softmax,
    aten.matmul.default: _product, aten.bmm.default: _product,
    aten.linear.default: moves.leading(lambda node: 1),
    aten.layer_norm.default: moves.leading(lambda node: len(node.args[1])),  # type: ignore[arg-type]  # a list of sizes
    aten.rms_norm.default: moves.leading(lambda node: len(node.args[1])),  # type: ignore[arg-type]  # a list of sizes
    aten.embedding.default: moves.embedding,
    aten.transpose.int: moves.permuted, aten.permute.default: moves.permuted,
    aten.unsqueeze.default: moves.unsqueezed,
    aten.squeeze.dim: moves.squeezed, aten.squeeze.dims: moves.squeezed,
    aten.repeat_interleave.self_int: moves.interleaved,
    aten.select.int: moves.selected, aten.slice.Tensor: moves.sliced, aten.expand.default: moves.expanded,
    aten.view.default: moves.viewed, aten.reshape.default: moves.viewed, aten._unsafe_view.default: moves.viewed,
    aten.flatten.using_ints: moves.viewed, aten.unflatten.int: moves.viewed,
    aten.cat.default: moves.joined, aten.stack.default: moves.joined,
    operator.getitem: moves.element, aten.sum.dim_IntList: moves.reduced, aten.mean.dim: moves.reduced,
    aten.clone.default: moves.first_only, aten.contiguous.default: moves.first_only,
    aten.alias.default: moves.first_only,
    aten.dropout.default: moves.first_only, aten._to_copy.default: moves.first_only, aten.to.dtype: moves.first_only,
}  # fmt: skip
