"""Segments through ops that act on each position alone: of several operands, of lookups, and by constant indices."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx

from graphs.split.blocks.pairs import pairs
from graphs.split.blocks.regions import MOST_RUNS, Regions
from graphs.split.column_provenance import Provenance, merged

aten = torch.ops.aten


def separated(regions: Regions, node: fx.Node) -> Provenance | None:
    """Return the segments of an item-side node whose positions are computed one by one, None if it has none."""
    if node.target in (aten.index.Tensor, aten.index_select.default):
        return _picked(regions, node) or pairs(regions, node)
    axes = {axis for source in node.all_input_nodes if (axis := result_axis(regions, node, source)) is not None}
    for axis in sorted(axes):
        ends = {0}
        for source in node.all_input_nodes:
            if result_axis(regions, node, source) == axis:
                ends.update(itertools.accumulate(regions.known[source].sizes()))
        parts = parted(regions, node, axis, sorted(ends))
        if parts is not None:
            return parts
    return None


def parted(regions: Regions, node: fx.Node, axis: int, ends: list[int]) -> Provenance | None:
    """Compute the parts of a node between positions of an axis; None if all of them need the item."""
    if len(ends) > MOST_RUNS:
        return None
    parts = [regions.of(node, node, {axis: (ends,)}) for ends in itertools.pairwise(ends)]
    return merged(regions.rewriter, node, axis, parts)


def result_axis(regions: Regions, node: fx.Node, source: fx.Node) -> int | None:
    """Return the axis of the result along which the positions of ``source`` lie, if the op keeps them apart."""
    found = regions.known.get(source)
    value = node.meta.get("val")
    target: Any = node.target
    if found is None or not found.plain or not isinstance(value, Tensor):
        return None
    rank, inner = value.dim(), source.meta["val"].dim()
    if target is aten.embedding.default:
        return found.axis if node.args[1] is source else None
    if target in (aten.cat.default, aten.stack.default):
        dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank  # type: ignore[arg-type]  # an int
        if target is aten.stack.default:
            return found.axis + (dim <= found.axis)
        return found.axis if dim != found.axis else None
    if target in (aten.softmax.int, aten._softmax.default):
        return found.axis if int(node.args[1]) % rank != found.axis else None  # type: ignore[arg-type]  # an int
    if target in (aten.sum.dim_IntList, aten.mean.dim):
        return _reduced_axis(node, found.axis, inner)
    if target in (aten.matmul.default, aten.bmm.default) and inner == rank:
        rows = node.args[0] is source and found.axis == rank - 2
        columns = node.args[1] is source and found.axis == rank - 1
        return found.axis if rows or columns else None
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return rank - inner + found.axis if pointwise or target is aten.expand.default else None


def _reduced_axis(node: fx.Node, axis: int, rank: int) -> int | None:
    dims = node.args[1]
    if not isinstance(dims, (list, tuple)) or not dims:
        return None
    gone = {int(d) % rank for d in dims}  # type: ignore[arg-type]  # ints
    if axis in gone:
        return None
    kept = len(node.args) > 2 and bool(node.args[2])
    return axis if kept else axis - sum(d < axis for d in gone)


def _holds_indices(tensor: Tensor) -> bool:
    return tensor.dtype is torch.int64 and not tensor.is_meta


def _picked(regions: Regions, node: fx.Node) -> Provenance | None:
    """Follow constant positions of the segments' axis: ``x[:, [3, 0, 4]]``."""
    source = node.args[0]
    found = regions.known.get(source) if isinstance(source, fx.Node) else None
    if found is None or not found.plain:
        return None
    if node.target is aten.index_select.default:
        axis, index = int(node.args[1]) % node.meta["val"].dim(), node.args[2]  # type: ignore[arg-type]  # an int
    else:
        given = node.args[1]
        assert isinstance(given, (list, tuple))
        at = [(axis, n) for axis, n in enumerate(given) if n is not None]
        if len(at) != 1:
            return None
        axis, index = at[0]
    positions = regions.rewriter.value(index)
    if axis != found.axis or positions is None or positions.dim() != 1 or not _holds_indices(positions):
        return None
    ends = list(itertools.accumulate(found.sizes()))
    runs: list[tuple[int, list[int]]] = []
    for position in (int(p) % ends[-1] for p in positions):
        segment = next(i for i, end in enumerate(ends) if position < end)
        if not runs or runs[-1][0] != segment:
            runs.append((segment, []))
        runs[-1][1].append(position - (ends[segment - 1] if segment else 0))
    if len(runs) > MOST_RUNS:
        return None
    rewriter = regions.rewriter
    parts = []
    for segment, inside in runs:
        index = rewriter.constant("picked", torch.tensor(inside))
        parts.append(rewriter.call(node, aten.index_select.default, found.segments[segment], axis, index))
    return merged(rewriter, node, axis, parts)
