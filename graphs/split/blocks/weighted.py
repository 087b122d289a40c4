"""Softmax over positions of both sides, if the user's scores need no item: pooling by a learned query.

With scores [a | b] of the user's positions U and the others G, their maxima m and the sums s of e^(score - maximum),

    softmax([a | b]) [U; G] = f_a (e^(a - m_a) U) + f_b (e^(b - m_b) G),   f_a = e^(m_a - m) / (s_a e^(m_a - m) + ...)

with m the larger maximum. The sum over the user's positions is a vector per user, in place of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphs.base.cost import numel
from graphs.split.blocks.regions import Regions
from graphs.split.column_provenance import is_user

aten = torch.ops.aten

__all__ = ["Pooled", "weighted"]

_SOFTMAXES = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
_SAME = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.dropout.default)

# Fewer user positions than this are not worth two more sums and products per candidate.
FEWEST = 4

# Scores above this are no -inf of a mask; those of which nothing is known may be.
_FINITE = -1e30


@dataclass(frozen=True)
class Weighted:
    """A tensor as its ``segments`` along an axis, each times its factor, which has size 1 along that axis."""

    axis: int
    segments: tuple[fx.Node, ...]
    factors: tuple[fx.Node, ...]

    def ends(self) -> list[tuple[int, int]]:
        """Return where each segment starts and ends."""
        found, at = [], 0
        for segment in self.segments:
            length = int(segment.meta["val"].shape[self.axis])
            found.append((at, at + length))
            at += length
        return found


@dataclass(frozen=True)
class Pooled:
    """A sum over weighted positions that was split: the FLOPs that its user part saves per candidate."""

    saved_flops: int


def weighted(regions: Regions, node: fx.Node, known: dict[fx.Node, Weighted]) -> Pooled | None:
    """Follow a softmax over both sides to the sum over its positions, and split that; None if it is not this sum."""
    if node.target in _SOFTMAXES:
        made = _of_softmax(regions, node)
    elif node.target in (aten.matmul.default, aten.bmm.default) and node.args[0] in known:
        return _product(regions, node, known[node.args[0]])  # type: ignore[index]  # a node
    elif node.target is aten.sum.dim_IntList and node.args[0] in known:
        return _sum(regions, node, known[node.args[0]])  # type: ignore[index]  # a node
    else:
        made = _moved(regions, node, known)
    if made is not None:
        known[node] = made
    return None


def _of_softmax(regions: Regions, node: fx.Node) -> Weighted | None:
    scores, dim = node.args[:2]
    found = regions.known.get(scores) if isinstance(scores, fx.Node) else None
    if found is None or not found.plain or int(dim) % node.meta["val"].dim() != found.axis:  # type: ignore[arg-type]  # an int
        return None
    assert isinstance(scores, fx.Node)
    users = [s for s in found.segments if is_user(regions.rewriter, s)]
    if sum(int(s.meta["val"].shape[found.axis]) for s in users) < FEWEST or node.meta["val"].dtype not in (
        torch.float32,
        torch.float64,
    ):
        return None
    call, axis = regions.rewriter.call, found.axis

    def largest(tensor: fx.Node, guarded: bool) -> tuple[fx.Node, fx.Node]:
        """Return the maximum, and what to subtract: -inf from -inf would be NaN."""
        most = call(node, aten.amax.default, tensor, [axis], True)
        if not guarded:
            return most, most
        return most, call(node, aten.masked_fill.Scalar, most, call(node, aten.eq.Scalar, most, -torch.inf), 0.0)

    bounds = regions.values.of(scores)
    finite = bounds is not None and bool((bounds.low > _FINITE).all())
    maxima, powers = [], []
    for segment in found.segments:
        most, subtracted = largest(segment, not finite)
        maxima.append(most)
        powers.append(call(node, aten.exp.default, call(node, aten.sub.Tensor, segment, subtracted)))
    # A row that sees nothing at all is NaN, or 0 in a safe softmax. Else the sum is at least 1.
    safe = node.target is aten._safe_softmax.default
    every = call(node, aten.cat.default, maxima, axis)
    ratios = call(node, aten.exp.default, call(node, aten.sub.Tensor, every, largest(every, safe)[1]))
    sums = call(node, aten.cat.default, [call(node, aten.sum.dim_IntList, p, [axis], True) for p in powers], axis)
    total = call(node, aten.sum.dim_IntList, call(node, aten.mul.Tensor, ratios, sums), [axis], True)
    total = call(node, aten.clamp_min.default, total, 1.0) if safe else total
    factors = call(node, aten.div.Tensor, ratios, total)
    each = [call(node, aten.slice.Tensor, factors, axis, i, i + 1) for i in range(len(powers))]
    return Weighted(axis, tuple(powers), tuple(each))


def _moved(regions: Regions, node: fx.Node, known: dict[fx.Node, Weighted]) -> Weighted | None:
    """Follow copies, added axes, transposes, and products with what has the same positions."""
    source = node.args[0] if node.args else None
    found = known.get(source) if isinstance(source, fx.Node) else None
    if node.target is aten.mul.Tensor and not node.kwargs:
        return _multiplied(regions, node, known)
    if found is None:
        return None
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    whole = node.target is aten.slice.Tensor and node.meta["val"].shape == source.meta["val"].shape
    if node.target in _SAME or whole:
        return found
    arguments: tuple[Any, ...]
    if node.target is aten.unsqueeze.default:
        dim = int(node.args[1]) % (rank + 1)  # type: ignore[arg-type]  # an int
        axis, arguments = found.axis + (dim <= found.axis), (dim,)
    elif node.target is aten.transpose.int:
        a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]  # ints
        axis, arguments = {a: b, b: a}.get(found.axis, found.axis), (a, b)
    else:
        return None
    segments, factors = (
        tuple(regions.rewriter.call(node, node.target, n, *arguments) for n in side)
        for side in (found.segments, found.factors)
    )
    return Weighted(axis, segments, factors)


def _multiplied(regions: Regions, node: fx.Node, known: dict[fx.Node, Weighted]) -> Weighted | None:
    left, right = node.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or (left in known) == (right in known):
        return None
    weights, data = (left, right) if left in known else (right, left)
    found, rank = known[weights], node.meta["val"].dim()
    if weights.meta["val"].dim() != rank or data.meta["val"].dim() != rank:
        return None
    if data.meta["val"].shape[found.axis] != weights.meta["val"].shape[found.axis]:
        return None
    segments = [
        regions.rewriter.call(node, aten.mul.Tensor, segment, regions.of(node, data, {found.axis: (ends,)}))
        for segment, ends in zip(found.segments, found.ends(), strict=True)
    ]
    return Weighted(found.axis, tuple(segments), found.factors)


def _sum(regions: Regions, node: fx.Node, found: Weighted) -> Pooled | None:
    """Sum each segment, times its factor."""
    dims, rank = node.args[1], node.args[0].meta["val"].dim()  # type: ignore[union-attr]  # a node
    if not isinstance(dims, (list, tuple)) or [int(d) % rank for d in dims] != [found.axis] or node.kwargs:  # type: ignore[arg-type]  # ints
        return None
    call = regions.rewriter.call
    sums = [call(node, aten.sum.dim_IntList, s, *node.args[1:]) for s in found.segments]
    kept = len(node.args) > 2 and bool(node.args[2])
    factors = [f if kept else call(node, aten.select.int, f, found.axis, 0) for f in found.factors]
    return _total(regions, node, sums, factors, [2 * numel(s.meta["val"]) for s in found.segments])


def _product(regions: Regions, node: fx.Node, found: Weighted) -> Pooled | None:
    """Multiply each segment by its rows of the other operand, times its factor."""
    right, rank = node.args[1], node.meta["val"].dim()
    if not isinstance(right, fx.Node) or found.axis != rank - 1 or right.meta["val"].dim() != rank:
        return None
    call = regions.rewriter.call
    terms = [
        call(node, node.target, segment, regions.of(node, right, {rank - 2: (ends,)}))
        for segment, ends in zip(found.segments, found.ends(), strict=True)
    ]
    return _total(
        regions, node, terms, list(found.factors), [2 * numel(node.meta["val"]) * (b - a) for a, b in found.ends()]
    )


def _total(
    regions: Regions, node: fx.Node, terms: list[fx.Node], factors: list[fx.Node], flops: list[int]
) -> Pooled | None:
    rewriter = regions.rewriter
    saved = sum(n for n, term in zip(flops, terms, strict=True) if is_user(rewriter, term))
    # Per candidate, every term is multiplied by its factor and added.
    if saved <= 4 * len(terms) * numel(node.meta["val"]):
        return None
    total: fx.Node | None = None
    for term, factor in zip(terms, factors, strict=True):
        scaled = rewriter.call(node, aten.mul.Tensor, term, factor)
        total = scaled if total is None else rewriter.call(node, aten.add.Tensor, total, scaled)
    assert total is not None
    rewriter.replace(node, total)
    return Pooled(saved)
