"""Which pieces of a per-candidate tensor are user-only: symbolic provenance along one axis."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from graphs.base.cost import static
from graphs.split.prune_columns import sliced
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class Parts:
    """A tensor as ``scale * (cat(pieces, axis) + sum_j t_j v_j) + shift``.

    Neighbouring pieces alternate between user-only and the rest. ``scale`` and the ``t_j`` are one number per row
    (size 1 on the last axis), ``v_j`` and ``shift`` constant vectors over it; only norms make them, on the last axis.
    """

    axis: int
    pieces: tuple[fx.Node, ...]
    scale: fx.Node | None = None
    ranks: tuple[tuple[fx.Node, Tensor], ...] = field(default=())
    shift: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Say whether the tensor is the pieces alone."""
        return self.scale is None and not self.ranks and self.shift is None

    def sizes(self) -> list[int]:
        """Return the length of each piece along the axis."""
        return [static(p.meta["val"].shape[self.axis]) for p in self.pieces]


def gathered(rewriter: Rewriter, like: fx.Node, axis: int, pieces: list[fx.Node]) -> Parts | None:
    """Join neighbouring pieces of the same side; None where one side is all there is."""
    groups: list[list[fx.Node]] = []
    for piece in pieces:
        if groups and is_user(rewriter, groups[-1][-1]) == is_user(rewriter, piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    if len(groups) == 1:
        return None
    joined = [g[0] if len(g) == 1 else rewriter.call(like, aten.cat.default, g, axis) for g in groups]
    return Parts(axis, tuple(joined))


def is_user(rewriter: Rewriter, node: fx.Node) -> bool:
    """Say whether a piece is the same for all candidates of a user."""
    return rewriter.sides[node] == "user"


def moved_parts(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Parts]) -> Parts | None:
    """Follow the pieces of an item-side node through joining, moving, cutting and element-wise work."""
    target = node.target
    if target in (aten.cat.default, aten.stack.default):
        return _joined(rewriter, node, known)
    if target is operator.getitem:
        return _element(rewriter, node, known)
    if target in (aten.mul.Tensor, aten.add.Tensor) and len(node.all_input_nodes) == 2:
        return _combined(rewriter, node, known)
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    parts = known.get(source) if source is not None else None
    if source is None or parts is None or node.args[0] is not source:
        return None
    if target in (aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.alias.default):
        return parts
    if not parts.plain:
        return None
    each = _Each(rewriter, node, parts)
    rank = source.meta["val"].dim()
    if target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
                  aten.unflatten.int):  # fmt: skip
        return _viewed(rewriter, node, source, parts)
    if target is aten.permute.default:
        order = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]  # a list of ints
        return each.moved(order.index(parts.axis), lambda p: (target, p, order))
    if target is aten.transpose.int:
        a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]  # ints
        return each.moved({a: b, b: a}.get(parts.axis, parts.axis), lambda p: (target, p, a, b))
    if target is aten.unsqueeze.default:
        dim = int(node.args[1]) % (rank + 1)  # type: ignore[arg-type]  # an int
        return each.moved(parts.axis + (dim <= parts.axis), lambda p: (target, p, dim))
    if target is aten.slice.Tensor:
        dim, bounds = sliced(node)
        if dim != parts.axis:
            return each.moved(parts.axis, lambda p: (target, p, *node.args[1:]))
        return None if bounds is None else _taken(rewriter, node, parts, *bounds)
    if target is aten.select.int:
        dim, index = int(node.args[1]) % rank, int(node.args[2])  # type: ignore[arg-type]  # ints
        if dim == parts.axis:
            _replace_by_selected(rewriter, node, parts, index)
            return None
        return each.moved(parts.axis - (dim < parts.axis), lambda p: (target, p, dim, index))
    if _is_unary(node):
        return each.moved(parts.axis, lambda p: (target, *[p if a is source else a for a in node.args]))
    return None


@dataclass(frozen=True)
class _Each:
    rewriter: Rewriter
    node: fx.Node
    parts: Parts

    def moved(self, axis: int, make: Callable[[fx.Node], tuple[Any, ...]]) -> Parts:
        """Apply an op to every piece."""
        options = dict(self.node.kwargs)
        made = (make(p) for p in self.parts.pieces)
        return Parts(axis, tuple(self.rewriter.call(self.node, *m, **options) for m in made))


def _is_unary(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or len(node.all_input_nodes) != 1:
        return False
    return torch.Tag.pointwise in target.tags or target is aten._to_copy.default


def _joined(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Parts]) -> Parts | None:
    given = node.args[0]
    assert isinstance(given, (list, tuple))
    axis = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]  # an int
    axis %= node.meta["val"].dim()
    pieces: list[fx.Node] = []
    for piece in given:
        assert isinstance(piece, fx.Node)
        inner = known.get(piece)
        if node.target is aten.stack.default:
            pieces.append(rewriter.call(node, aten.unsqueeze.default, piece, axis))
        elif inner is not None and inner.plain and inner.axis == axis:
            pieces.extend(inner.pieces)
        else:
            pieces.append(piece)
    return gathered(rewriter, node, axis, pieces)


def _viewed(rewriter: Rewriter, node: fx.Node, source: fx.Node, parts: Parts) -> Parts | None:
    """A view keeps the pieces where their axis becomes the outermost factor of one new axis, or stays one."""
    before = [_symbolic(s) for s in source.meta["val"].shape]
    after = [_symbolic(s) for s in node.meta["val"].shape]
    outer, inner = _product(before[: parts.axis]), _product(before[parts.axis + 1 :])
    for axis, size in enumerate(after):
        left = _product(after[axis + 1 :])
        if _product(after[:axis]) != outer or size == 1 or size * left != before[parts.axis] * inner:
            continue
        lengths = [length * inner / left for length in parts.sizes()]
        if not all(length.is_Integer for length in lengths):
            return None
        if any(not s.is_Integer and not s.is_Symbol for s in after):
            return None  # the batch is folded with another axis
        shape = [int(s) if s.is_Integer else -1 for s in after]
        made = [
            rewriter.call(node, aten.reshape.default, piece, [*shape[:axis], int(length), *shape[axis + 1 :]])
            for piece, length in zip(parts.pieces, lengths, strict=True)
        ]
        return Parts(axis, tuple(made))
    return None


def _symbolic(size: int | torch.SymInt) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _product(sizes: Sequence[sympy.Expr]) -> sympy.Expr:
    return math.prod(sizes, start=sympy.Integer(1))


def _taken(rewriter: Rewriter, node: fx.Node, parts: Parts, low: int, high: int) -> Parts | None:
    """Keep positions ``low:high`` of the pieces' axis; where that is one piece, the node is replaced by it."""
    pieces, at = [], 0
    for piece, length in zip(parts.pieces, parts.sizes(), strict=True):
        a, b = max(low - at, 0), min(high - at, length)
        if a < b:
            whole = (a, b) == (0, length)
            pieces.append(piece if whole else rewriter.call(node, aten.slice.Tensor, piece, parts.axis, a, b))
        at += length
    if len(pieces) == 1:
        rewriter.replace(node, pieces[0])
    return Parts(parts.axis, tuple(pieces)) if len(pieces) > 1 else None


def _element(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Parts]) -> Parts | None:
    """Take one element of a split, a chunk or an unbind along the pieces' axis."""
    whole, index = node.args
    assert isinstance(whole, fx.Node)
    parts = known.get(whole.args[0]) if whole.args and isinstance(whole.args[0], fx.Node) else None
    cuts = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
    if parts is None or not parts.plain or whole.target not in cuts:
        return None
    position = 1 if whole.target is aten.unbind.int else 2
    dim = whole.args[position] if len(whole.args) > position else whole.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    assert isinstance(index, int)
    values = whole.meta["val"]
    rank = parts.pieces[0].meta["val"].dim()
    if dim % rank != parts.axis:
        return None
    if whole.target is aten.unbind.int:
        _replace_by_selected(rewriter, node, parts, index)
        return None
    lengths = [static(v.shape[parts.axis]) for v in values]
    return _taken(rewriter, node, parts, sum(lengths[:index]), sum(lengths[: index + 1]))


def _replace_by_selected(rewriter: Rewriter, node: fx.Node, parts: Parts, index: int) -> None:
    at = index % sum(parts.sizes())
    for piece, length in zip(parts.pieces, parts.sizes(), strict=True):
        if at < length:
            rewriter.replace(node, rewriter.call(node, aten.select.int, piece, parts.axis, at))
            return
        at -= length


def _combined(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Parts]) -> Parts | None:
    """Add or multiply by a constant vector, or multiply by one number per row (what a norm written out does)."""
    left, right = node.args[0], node.args[1]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or node.kwargs:
        return None
    data, other = (left, right) if left in known else (right, left)
    parts = known.get(data)
    if parts is None or data is other or other in known:
        return None
    rank = data.meta["val"].dim()
    shape = other.meta["val"].shape
    if node.meta["val"].dim() != rank:
        return None
    by_row = len(shape) < rank - parts.axis or shape[parts.axis - rank] == 1
    multiplies = node.target is aten.mul.Tensor
    if by_row and rewriter.value(other) is None:
        scales = multiplies and parts.plain and parts.axis == rank - 1
        return Parts(parts.axis, parts.pieces, scale=other) if scales else None
    constant = rewriter.value(other)
    simple = parts.plain or (multiplies and not parts.ranks and parts.shift is None)
    if constant is None or not simple:
        return None
    pieces, at = [], 0
    for piece, length in zip(parts.pieces, parts.sizes(), strict=True):
        cut = other
        if not by_row:
            held = constant.narrow(parts.axis - rank, at, length)
            cut = rewriter.constant(f"{rewriter.name(other)}.part", held)
        pieces.append(rewriter.call(node, node.target, piece, cut))
        at += length
    return Parts(parts.axis, tuple(pieces), scale=parts.scale)
