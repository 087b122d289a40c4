"""Parts of what moves data or acts on each position alone, from the part of the one tensor it reads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import fx

from graphs.split.blocks.known_values import Ranges
from graphs.split.column_provenance import kept_axis, squeezed_axes
from graphs.split.prune_columns import sliced as slice_bounds
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten

CUTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)

Cut = Mapping[int, Ranges]


class Regions(Protocol):
    """What makes the parts of other nodes: ``graphs.split.blocks.regions``."""

    rewriter: Rewriter

    def of(self, like: fx.Node, node: fx.Node, wanted: Cut) -> fx.Node:
        """Return the node with the wanted ranges of some axes."""

    def operand(self, like: fx.Node, node: fx.Node, rank: int, cut: Cut) -> fx.Node:
        """Return the part of a tensor that is broadcast."""

    def of_segments(self, like: fx.Node, segments: list[fx.Node], axis: int, cut: Cut) -> fx.Node:
        """Return the part of tensors joined along an axis."""


def first(node: fx.Node) -> fx.Node:
    """Return a node's first argument."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def rank_of(node: fx.Node) -> int:
    """Return the number of axes of a node's value."""
    return int(node.meta["val"].dim())


def first_only(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node:
    """Apply an op to the part of its first operand."""
    part = regions.of(like, first(node), cut)
    return regions.rewriter.call(like, node.target, part, *node.args[1:], **node.kwargs)


def leading(last: Callable[[fx.Node], int]) -> Callable[[Regions, fx.Node, fx.Node, Cut], fx.Node | None]:
    """Return the rule of an op that keeps every axis and treats all but the ``last`` ones one by one."""

    def rule(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
        return None if max(cut) >= rank_of(node) - last(node) else first_only(regions, like, node, cut)

    return rule


def embedding(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Look the ids of the part up."""
    table, ids = node.args[:2]
    if not isinstance(ids, fx.Node) or max(cut) >= rank_of(node) - 1:
        return None
    return regions.rewriter.call(like, node.target, table, regions.of(like, ids, cut), *node.args[2:], **node.kwargs)


def permuted(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node:
    """Permute the part."""
    rank = rank_of(node)
    if node.target is aten.permute.default:
        order = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]  # a list of ints
    else:
        order = list(range(rank))
        a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]  # ints
        order[a], order[b] = order[b], order[a]
    source = regions.of(like, first(node), {order[axis]: r for axis, r in cut.items()})
    return regions.rewriter.call(like, node.target, source, *node.args[1:])


def unsqueezed(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node:
    """Add an axis to the part."""
    dim = int(node.args[1]) % rank_of(node)  # type: ignore[arg-type]  # an int
    source = regions.of(like, first(node), {a - (a > dim): r for a, r in cut.items()})
    return regions.rewriter.call(like, node.target, source, dim)


def selected(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node:
    """Select a position of another axis."""
    dim = int(node.args[1]) % rank_of(first(node))  # type: ignore[arg-type]  # an int
    source = regions.of(like, first(node), {a + (a >= dim): r for a, r in cut.items()})
    return regions.rewriter.call(like, node.target, source, dim, *node.args[2:])


def sliced(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Take the ranges out of the sliced tensor."""
    source = first(node)
    dim, bounds = slice_bounds(node)
    if node.meta["val"].shape == source.meta["val"].shape:
        return regions.of(like, source, cut)
    if dim not in cut:
        return first_only(regions, like, node, cut)
    if bounds is None:
        return None
    shifted = tuple((low + bounds[0], high + bounds[0]) for low, high in cut[dim])
    return regions.of(like, source, {**cut, dim: shifted})


def expanded(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node:
    """Expand the part to fewer positions."""
    sizes = list(node.args[1])  # type: ignore[arg-type]  # a list of sizes
    for axis, ranges in cut.items():
        sizes[axis] = sum(high - low for low, high in ranges)
    source = regions.operand(like, first(node), rank_of(node), cut)
    return regions.rewriter.call(like, node.target, source, sizes)


def viewed(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Reshape the part, if the view keeps its axes."""
    source = first(node)
    before, after = source.meta["val"].shape, node.meta["val"].shape
    at = {axis: kept_axis(before, after, axis) for axis in cut}
    if None in at.values() or sum(isinstance(s, torch.SymInt) for s in after) > 1:
        return None
    shape = [-1 if isinstance(s, torch.SymInt) else int(s) for s in after]
    for axis, ranges in cut.items():
        shape[axis] = sum(high - low for low, high in ranges)
    part = regions.of(like, source, {at[axis]: r for axis, r in cut.items()})  # type: ignore[misc]  # checked above
    return regions.rewriter.call(like, aten.reshape.default, part, shape)


def joined(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Join the parts; along the axis itself, only the tensors that have some of it."""
    given = node.args[0]
    assert isinstance(given, (list, tuple))
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank_of(node)  # type: ignore[arg-type]  # an int
    nodes = [n for n in given if isinstance(n, fx.Node)]
    if node.target is aten.stack.default and dim in cut:
        return None
    if node.target is aten.stack.default:
        parts = [regions.of(like, n, {a - (a > dim): r for a, r in cut.items()}) for n in nodes]
        return regions.rewriter.call(like, aten.stack.default, parts, dim)
    if dim in cut:
        return regions.of_segments(like, nodes, dim, cut)
    return regions.rewriter.call(like, aten.cat.default, [regions.of(like, n, cut) for n in nodes], dim)


def reduced(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Reduce the part over other axes."""
    source, dims = first(node), node.args[1]
    if not isinstance(dims, (list, tuple)) or not dims:
        return None
    gone = sorted(int(d) % rank_of(source) for d in dims)  # type: ignore[arg-type]  # ints
    kept = len(node.args) > 2 and bool(node.args[2])
    left = [a for a in range(rank_of(source)) if kept or a not in gone]
    part = regions.of(like, source, {left[a]: r for a, r in cut.items()})
    return regions.rewriter.call(like, node.target, part, *node.args[1:], **node.kwargs)


def element(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Take one tensor of a split, chunk or unbind along an axis that stays whole."""
    whole = first(node)
    position = 1 if whole.target is aten.unbind.int else 2
    if whole.target not in (*CUTS, aten.unbind.int):
        return None
    source = first(whole)
    dim = whole.args[position] if len(whole.args) > position else whole.kwargs.get("dim", 0)
    dim = int(dim) % rank_of(source)  # type: ignore[arg-type]  # an int
    gone = whole.target is aten.unbind.int
    if dim in cut and not gone:
        return None
    part = regions.of(like, source, {a + (gone and a >= dim): r for a, r in cut.items()})
    pieces = regions.rewriter.call(like, whole.target, part, *whole.args[1:], **whole.kwargs)
    return regions.rewriter.call(like, operator.getitem, pieces, node.args[1])


def squeezed(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node:
    """Remove axes of one position."""
    source, gone = first(node), squeezed_axes(node)
    left = [a for a in range(rank_of(source)) if a not in gone]
    part = regions.of(like, source, {left[a]: r for a, r in cut.items()})
    return regions.rewriter.call(like, aten.squeeze.dims, part, gone)


def interleaved(regions: Regions, like: fx.Node, node: fx.Node, cut: Cut) -> fx.Node | None:
    """Repeat heads."""
    dim = node.args[2] if len(node.args) > 2 else None
    return first_only(regions, like, node, cut) if isinstance(dim, int) and dim % rank_of(node) not in cut else None
