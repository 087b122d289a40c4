"""Which segments of a per-candidate tensor are user-only: symbolic provenance along one axis."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from graphs.base.cost import static
from graphs.split.prune_columns import sliced
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class Provenance:
    """A tensor as ``scale * (cat(segments, axis) + sum_j t_j v_j) + shift``.

    Segments alternate between user-only and the rest. ``scale`` and ``t_j`` are one number per row (size 1 on the
    last axis), ``v_j`` and ``shift`` constant vectors over that axis; ``rank_one`` holds (t_j, v_j). Only norms
    produce them.
    """

    axis: int
    segments: tuple[fx.Node, ...]
    scale: fx.Node | None = None
    rank_one: tuple[tuple[fx.Node, Tensor], ...] = ()
    shift: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the tensor is its segments and nothing else."""
        return self.scale is None and not self.rank_one and self.shift is None

    def sizes(self) -> list[int]:
        """Return the length of each segment along the axis."""
        return [static(s.meta["val"].shape[self.axis]) for s in self.segments]


def merged(rewriter: Rewriter, like: fx.Node, axis: int, segments: list[fx.Node]) -> Provenance | None:
    """Join neighbouring segments of the same side; None if all are of one side."""
    groups: list[list[fx.Node]] = []
    for segment in segments:
        if groups and is_user(rewriter, groups[-1][-1]) == is_user(rewriter, segment):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    if len(groups) == 1:
        return None
    joined = [g[0] if len(g) == 1 else rewriter.call(like, aten.cat.default, g, axis) for g in groups]
    return Provenance(axis, tuple(joined))


def is_user(rewriter: Rewriter, node: fx.Node) -> bool:
    """Return whether a segment is the same for all candidates of a user."""
    return rewriter.sides[node] == "user"


def provenance_of(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Provenance]) -> Provenance | None:
    """Follow segments through an item-side node: concatenation, views, slicing and element-wise ops."""
    target = node.target
    if target in (aten.cat.default, aten.stack.default):
        return _joined(rewriter, node, known)
    if target is operator.getitem:
        return _element(rewriter, node, known)
    if target in (aten.mul.Tensor, aten.add.Tensor) and len(node.all_input_nodes) == 2:
        return _combined(rewriter, node, known)
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    found = known.get(source) if source is not None else None
    if source is None or found is None or node.args[0] is not source:
        return None
    if target in (aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.alias.default):
        return found
    if not found.plain:
        return None

    def on_each(axis: int, arguments: Callable[[fx.Node], tuple[Any, ...]]) -> Provenance:
        made = (rewriter.call(node, target, *arguments(s), **node.kwargs) for s in found.segments)
        return Provenance(axis, tuple(made))

    rank = source.meta["val"].dim()
    if target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
                  aten.unflatten.int):  # fmt: skip
        return _viewed(rewriter, node, source, found)
    if target is aten.permute.default:
        order = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]  # a list of ints
        return on_each(order.index(found.axis), lambda s: (s, order))
    if target is aten.transpose.int:
        a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]  # ints
        return on_each({a: b, b: a}.get(found.axis, found.axis), lambda s: (s, a, b))
    if target is aten.unsqueeze.default:
        dim = int(node.args[1]) % (rank + 1)  # type: ignore[arg-type]  # an int
        return on_each(found.axis + (dim <= found.axis), lambda s: (s, dim))
    if target in (aten.squeeze.dim, aten.squeeze.dims):
        gone = squeezed_axes(node)
        # By name, since a segment of one position has more axes of size 1 than the whole.
        axis = found.axis - sum(d < found.axis for d in gone)
        made = (rewriter.call(node, aten.squeeze.dims, s, gone) for s in found.segments)
        return Provenance(axis, tuple(made))
    if target is aten.expand.default:
        sizes = list(node.args[1])  # type: ignore[arg-type]  # a list of sizes
        axis = found.axis + len(sizes) - rank
        return on_each(axis, lambda s: (s, [*sizes[:axis], -1, *sizes[axis + 1 :]]))
    if target is aten.repeat_interleave.self_int:
        apart = len(node.args) > 2 and isinstance(node.args[2], int) and node.args[2] % rank != found.axis
        return on_each(found.axis, lambda s: (s, *node.args[1:])) if apart else None
    if target is aten.slice.Tensor:
        dim, bounds = sliced(node)
        if dim != found.axis:
            return on_each(found.axis, lambda s: (s, *node.args[1:]))
        return None if bounds is None else _taken(rewriter, node, found, *bounds)
    if target is aten.select.int:
        dim, index = int(node.args[1]) % rank, int(node.args[2])  # type: ignore[arg-type]  # ints
        if dim == found.axis:
            _replace_by_selected(rewriter, node, found, index)
            return None
        return on_each(found.axis - (dim < found.axis), lambda s: (s, dim, index))
    if _is_unary(node):
        return on_each(found.axis, lambda s: tuple(s if a is source else a for a in node.args))
    return None


def _is_unary(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or len(node.all_input_nodes) != 1:
        return False
    return torch.Tag.pointwise in target.tags or target in (aten._to_copy.default, aten.to.dtype)


def _joined(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Provenance]) -> Provenance | None:
    given = node.args[0]
    assert isinstance(given, (list, tuple))
    axis = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]  # an int
    axis %= node.meta["val"].dim()
    segments: list[fx.Node] = []
    for segment in given:
        assert isinstance(segment, fx.Node)
        inner = known.get(segment)
        if node.target is aten.stack.default:
            segments.append(rewriter.call(node, aten.unsqueeze.default, segment, axis))
        elif inner is not None and inner.plain and inner.axis == axis:
            segments.extend(inner.segments)
        else:
            segments.append(segment)
    kept = [s for s in segments if s.meta["val"].shape[axis] != 0]  # features of a kind that the model has none of
    found = merged(rewriter, node, axis, kept) if kept else None
    if found is None and 0 < len(kept) < len(segments):
        rewriter.replace(node, kept[0] if len(kept) == 1 else rewriter.call(node, aten.cat.default, kept, axis))
    return found


def _viewed(rewriter: Rewriter, node: fx.Node, source: fx.Node, found: Provenance) -> Provenance | None:
    """A view keeps the segments if their axis stays an axis or becomes the outermost factor of one."""
    before = [_symbolic(s) for s in source.meta["val"].shape]
    after = [_symbolic(s) for s in node.meta["val"].shape]
    outer, inner = _product(before[: found.axis]), _product(before[found.axis + 1 :])
    for axis, size in enumerate(after):
        left = _product(after[axis + 1 :])
        if _product(after[:axis]) != outer or size == 1 or size * left != before[found.axis] * inner:
            continue
        lengths = [length * inner / left for length in found.sizes()]
        if not all(length.is_Integer for length in lengths):
            return None
        if sum(not s.is_Integer for s in after) > 1:
            return None
        shape = [int(s) if s.is_Integer else -1 for s in after]
        made = [
            rewriter.call(node, aten.reshape.default, segment, [*shape[:axis], int(length), *shape[axis + 1 :]])
            for segment, length in zip(found.segments, lengths, strict=True)
        ]
        return Provenance(axis, tuple(made))
    return None


def kept_axis(before: Sequence[int | torch.SymInt], after: Sequence[int | torch.SymInt], axis: int) -> int | None:
    """Return the axis of the viewed tensor that is axis ``axis`` of the view, None if a view does not keep it."""
    old, new = [_symbolic(s) for s in before], [_symbolic(s) for s in after]
    same = (i for i in range(len(old)) if old[i] == new[axis] and _product(old[:i]) == _product(new[:axis]))
    return next(same, None)


def squeezed_axes(node: fx.Node) -> list[int]:
    """Return the axes that a squeeze removes."""
    source, given = node.args[:2]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    dims = given if isinstance(given, (list, tuple)) else [given]
    axes = sorted({int(d) % len(shape) for d in dims})  # type: ignore[arg-type]  # ints
    return [d for d in axes if not isinstance(shape[d], torch.SymInt) and shape[d] == 1]


def merged_axes(shape: Sequence[int | torch.SymInt], size: int | torch.SymInt) -> int | None:
    """Return how many leading axes of a shape, two or more, a view merges to one of that size, if any."""
    sizes, whole = [_symbolic(s) for s in shape], _symbolic(size)
    return next((i for i in range(2, len(sizes) + 1) if _product(sizes[:i]) == whole), None)


def leading_sizes(shape: Sequence[int | torch.SymInt], axis: int, size: int | torch.SymInt) -> list[int] | None:
    """Return a shape of ``size`` elements that starts as ``shape`` does, up to ``axis``; -1 is its symbolic size."""
    kept = [_symbolic(s) for s in shape[: axis + 1]]
    rest = _symbolic(size) / _product(kept)
    sizes = kept if rest == 1 else [*kept, rest]
    if rest.as_numer_denom()[1] != 1 or sum(not s.is_Integer for s in sizes) > 1:
        return None
    return [int(s) if s.is_Integer else -1 for s in sizes]


def _symbolic(size: int | torch.SymInt) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _product(sizes: Sequence[sympy.Expr]) -> sympy.Expr:
    return math.prod(sizes, start=sympy.Integer(1))


def _taken(rewriter: Rewriter, node: fx.Node, found: Provenance, low: int, high: int) -> Provenance | None:
    """Keep positions ``low:high`` of the axis; a node that is then a single segment is replaced by it."""
    segments, at = [], 0
    for segment, length in zip(found.segments, found.sizes(), strict=True):
        a, b = max(low - at, 0), min(high - at, length)
        if a < b:
            whole = (a, b) == (0, length)
            segments.append(segment if whole else rewriter.call(node, aten.slice.Tensor, segment, found.axis, a, b))
        at += length
    if len(segments) == 1:
        rewriter.replace(node, segments[0])
    return Provenance(found.axis, tuple(segments)) if len(segments) > 1 else None


def _element(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Provenance]) -> Provenance | None:
    """Take one element of a split, chunk or unbind: along the segments' axis, or of each segment along another."""
    whole, index = node.args
    assert isinstance(whole, fx.Node)
    found = known.get(whole.args[0]) if whole.args and isinstance(whole.args[0], fx.Node) else None
    cuts = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
    if found is None or not found.plain or whole.target not in cuts:
        return None
    position = 1 if whole.target is aten.unbind.int else 2
    dim = whole.args[position] if len(whole.args) > position else whole.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    assert isinstance(index, int)
    values = whole.meta["val"]
    rank = found.segments[0].meta["val"].dim()
    if dim % rank != found.axis:
        cut = [rewriter.call(node, whole.target, s, *whole.args[1:], **whole.kwargs) for s in found.segments]
        gone = whole.target is aten.unbind.int and dim % rank < found.axis
        return Provenance(found.axis - gone, tuple(rewriter.call(node, operator.getitem, c, index) for c in cut))
    if whole.target is aten.unbind.int:
        _replace_by_selected(rewriter, node, found, index)
        return None
    lengths = [static(v.shape[found.axis]) for v in values]
    return _taken(rewriter, node, found, sum(lengths[:index]), sum(lengths[: index + 1]))


def _replace_by_selected(rewriter: Rewriter, node: fx.Node, found: Provenance, index: int) -> None:
    at = index % sum(found.sizes())
    for segment, length in zip(found.segments, found.sizes(), strict=True):
        if at < length:
            rewriter.replace(node, rewriter.call(node, aten.select.int, segment, found.axis, at))
            return
        at -= length


def _combined(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Provenance]) -> Provenance | None:
    """Add or multiply by a constant vector, or multiply by one number per row, as a written-out norm does."""
    left, right = node.args[0], node.args[1]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or node.kwargs:
        return None
    data, other = (left, right) if left in known else (right, left)
    found = known.get(data)
    if found is None or data is other or other in known:
        return None
    rank = data.meta["val"].dim()
    shape = other.meta["val"].shape
    if node.meta["val"].dim() != rank:
        return None
    by_row = len(shape) < rank - found.axis or shape[found.axis - rank] == 1
    multiplies = node.target is aten.mul.Tensor
    if by_row and rewriter.value(other) is None:
        scales = multiplies and found.plain and found.axis == rank - 1
        return Provenance(found.axis, found.segments, scale=other) if scales else None
    constant = rewriter.value(other)
    simple = found.plain or (multiplies and not found.rank_one and found.shift is None)
    if constant is None or not simple:
        return None
    segments, at = [], 0
    for segment, length in zip(found.segments, found.sizes(), strict=True):
        cut = other
        if not by_row:
            held = constant.narrow(found.axis - rank, at, length)
            cut = (
                rewriter.constant(f"{rewriter.name(other)}.part", held)
                if rewriter.folds
                else rewriter.call(node, aten.slice.Tensor, other, found.axis - rank, at, at + length)
            )
        segments.append(rewriter.call(node, node.target, segment, cut))
        at += length
    return Provenance(found.axis, tuple(segments), scale=found.scale)
