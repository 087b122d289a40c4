"""How long the vectors along a tensor's last axis can be, for every input: what bounds the scores of an attention.

A norm makes vectors of a known length, a weight stretches them by at most its own norm, and a score is at most the
product of the lengths of its query and key. So a mask of -1e4 or of the smallest 16-bit float hides for certain in
most models whose attention comes after a norm.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from graphs.split.rewriter import Rewriter

aten = torch.ops.aten

__all__ = ["LengthBounds"]

# Weights are rounded later, to 8 bits at most: by 1 % of their norm or so.
_MARGIN = 2.0
# Tables with more elements than this are not worth the time to read them.
_LARGEST = 1 << 24
_DEPTH = 200


@dataclass
class LengthBounds:
    """Upper bounds of the Euclidean length of vectors along the last axis, infinite where nothing is known."""

    rewriter: Rewriter
    found: dict[fx.Node, float] = field(default_factory=dict)
    open: set[fx.Node] = field(default_factory=set)

    def of(self, node: object) -> float:
        """Return the bound of a node's vectors."""
        if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
            return math.inf
        if node not in self.found:
            if len(self.open) >= _DEPTH:
                return math.inf
            self.open.add(node)
            self.found[node] = self._of(node)
            self.open.discard(node)
        return self.found[node]

    def score(self, node: fx.Node) -> float:
        """Return the bound of the size of a product's elements, with room for roundings."""
        if node.target not in (aten.matmul.default, aten.bmm.default):
            return math.inf
        left, right = node.args[:2]
        source = _turned(right)
        return math.inf if source is None else _MARGIN * self.of(left) * self.of(source)

    def _of(self, node: fx.Node) -> float:
        value = node.meta["val"]
        if not value.is_floating_point() or value.dim() == 0:
            return math.inf
        constant = self.rewriter.value(node)
        if constant is not None:
            known = not constant.is_meta and 0 < constant.numel() <= _LARGEST
            return float(constant.double().norm(dim=-1).max()) if known else math.inf
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        return rule(self, node) if rule is not None else math.inf

    def constant(self, node: object) -> Tensor | None:
        """Return the value of a constant in double precision, None if it is none or its values are read later."""
        if node is None:
            return None
        value = self.rewriter.value(node)
        return None if value is None or value.is_meta or value.numel() > _LARGEST else value.double()


def _turned(node: object) -> fx.Node | None:
    """Return the tensor of which a node is the transpose of the last two axes."""
    while isinstance(node, fx.Node) and node.target in _COPIES:
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.target not in (aten.transpose.int, aten.permute.default):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    if node.target is aten.transpose.int:
        return source if {int(d) % rank for d in node.args[1:3]} == {rank - 2, rank - 1} else None  # type: ignore[arg-type]  # ints
    order = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]  # a list of ints
    return source if order[-2] == rank - 1 else None


def _width(node: fx.Node) -> int:
    """Return the length of the last axis."""
    return int(node.meta["val"].shape[-1])


def _normed(bounds: LengthBounds, node: fx.Node) -> float:
    """A norm over the last axis gives vectors of length sqrt(width) at most, times its gain, plus its bias."""
    shape = node.args[1]
    if not isinstance(shape, (list, tuple)) or len(shape) != 1:
        return math.inf
    given = [node.args[i] if len(node.args) > i else None for i in (2, 3)]
    centred = node.target is aten.layer_norm.default
    gain, bias = bounds.constant(given[0]), bounds.constant(given[1]) if centred else None
    if (given[0] is not None and gain is None) or (centred and given[1] is not None and bias is None):
        return math.inf
    length = math.sqrt(_width(node)) * (1.0 if gain is None else float(gain.abs().max()))
    return length + (0.0 if bias is None else float(bias.norm()))


def _multiplied(bounds: LengthBounds, node: fx.Node) -> float:
    """A weight stretches by its largest singular value, which sqrt(|W|_1 |W|_inf) and its Frobenius norm bound."""
    linear = node.target is aten.linear.default
    weight = bounds.constant(node.args[1])
    if weight is None:
        return _averaged(bounds, node) if not linear else math.inf
    if weight.dim() != 2:
        return math.inf
    bias = bounds.constant(node.args[2]) if linear and len(node.args) > 2 else None
    if linear and len(node.args) > 2 and node.args[2] is not None and bias is None:
        return math.inf
    size = weight.abs()
    norm = min(float(weight.norm()), math.sqrt(float(size.sum(0).max()) * float(size.sum(1).max())))
    return bounds.of(node.args[0]) * norm + (0.0 if bias is None else float(bias.norm()))


def _averaged(bounds: LengthBounds, node: fx.Node) -> float:
    """What a softmax weighs is no longer than the longest."""
    weights = node.args[0]
    while isinstance(weights, fx.Node) and weights.target in _COPIES:
        weights = weights.args[0]
    if not isinstance(weights, fx.Node) or weights.target not in _SOFTMAXES:
        return math.inf
    if weights.args[1] not in (-1, weights.meta["val"].dim() - 1):
        return math.inf
    return bounds.of(node.args[1])


def _added(bounds: LengthBounds, node: fx.Node) -> float:
    alpha = node.kwargs.get("alpha", 1)
    terms = [a for a in node.args[:2] if isinstance(a, fx.Node)]
    if len(terms) != 2 or not isinstance(alpha, (int, float)):
        return math.inf
    return _broadcast(bounds, terms[0], node) + abs(alpha) * _broadcast(bounds, terms[1], node)


def _broadcast(bounds: LengthBounds, node: fx.Node, to: fx.Node) -> float:
    shape = node.meta["val"].shape
    return bounds.of(node) * (1 if len(shape) and shape[-1] == to.meta["val"].shape[-1] else math.sqrt(_width(to)))


def _scaled(bounds: LengthBounds, node: fx.Node) -> float:
    """A product with a number or a constant, the size of whose elements is known."""
    divides = node.target in (aten.div.Tensor, aten.div.Scalar)
    left, right = node.args[:2]
    for data, factor in ((left, right),) if divides else ((left, right), (right, left)):
        size = abs(factor) if isinstance(factor, (int, float)) else None
        held = None if size is not None else bounds.constant(factor)
        if held is not None and held.numel():
            size = float(held.abs().min() if divides else held.abs().max())
        if size is None or not isinstance(data, fx.Node) or (divides and size == 0):
            continue
        return _broadcast(bounds, data, node) * (1 / size if divides else size)
    return math.inf


def _first(bounds: LengthBounds, node: fx.Node) -> float:
    """What is no longer than its first operand: copies, parts, and functions no larger than their argument."""
    return bounds.of(node.args[0])


def _expanded(bounds: LengthBounds, node: fx.Node) -> float:
    source = node.args[0]
    return _broadcast(bounds, source, node) if isinstance(source, fx.Node) else math.inf


def _repeated(bounds: LengthBounds, node: fx.Node) -> float:
    dim = node.args[2] if len(node.args) > 2 else None
    rank = node.meta["val"].dim()
    return bounds.of(node.args[0]) if isinstance(dim, int) and dim % rank != rank - 1 else math.inf


def _bounded(bounds: LengthBounds, node: fx.Node) -> float:
    return min(math.sqrt(_width(node)), bounds.of(node.args[0]) if node.target is aten.tanh.default else math.inf)


def _moved(bounds: LengthBounds, node: fx.Node) -> float:
    """Permutations that keep the last axis."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    if node.target is aten.permute.default:
        kept = int(node.args[1][-1]) % rank == rank - 1  # type: ignore[index, arg-type]  # a list of ints
    else:
        kept = rank - 1 not in (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]  # ints
    return bounds.of(source) if kept else math.inf


def _viewed(bounds: LengthBounds, node: fx.Node) -> float:
    """Vectors cut to shorter ones, or several joined."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"].shape, node.meta["val"].shape
    if not len(before) or not len(after) or any(isinstance(s[-1], torch.SymInt) for s in (before, after)):
        return math.inf
    old, new = int(before[-1]), int(after[-1])
    if old % new == 0:
        return bounds.of(source)
    return bounds.of(source) * math.sqrt(new // old) if new % old == 0 else math.inf


def _unsqueezed(bounds: LengthBounds, node: fx.Node) -> float:
    rank = node.meta["val"].dim()
    return bounds.of(node.args[0]) if int(node.args[1]) % rank != rank - 1 else math.inf  # type: ignore[arg-type]  # an int


def _selected(bounds: LengthBounds, node: fx.Node) -> float:
    """A position of another axis than the last."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    return bounds.of(source) if int(node.args[1]) % rank != rank - 1 else math.inf  # type: ignore[arg-type]  # an int


def _joined(bounds: LengthBounds, node: fx.Node) -> float:
    given, rank = node.args[0], node.meta["val"].dim()
    assert isinstance(given, (list, tuple))
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank  # type: ignore[arg-type]  # an int
    lengths = [bounds.of(n) for n in given]
    if node.target is aten.stack.default and dim == rank - 1:
        return math.inf
    return math.hypot(*lengths) if dim == rank - 1 else max(lengths)


def _element(bounds: LengthBounds, node: fx.Node) -> float:
    """A piece of a split, chunk or unbind."""
    whole = node.args[0]
    if not isinstance(whole, fx.Node) or whole.target not in _PIECES:
        return math.inf
    source = whole.args[0]
    assert isinstance(source, fx.Node)
    if whole.target is aten.unbind.int:
        dim = whole.args[1] if len(whole.args) > 1 else whole.kwargs.get("dim", 0)
        rank = source.meta["val"].dim()
        return bounds.of(source) if int(dim) % rank != rank - 1 else math.inf  # type: ignore[arg-type]  # an int
    return bounds.of(source)


def _looked_up(bounds: LengthBounds, node: fx.Node) -> float:
    return bounds.of(node.args[0])


_COPIES = (
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.dropout.default, aten.detach.default,
)  # fmt: skip
_SOFTMAXES = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
_PIECES = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
_RULES: dict[Any, Callable[[LengthBounds, fx.Node], float]] = {
    aten.layer_norm.default: _normed, aten.rms_norm.default: _normed,
    aten.linear.default: _multiplied, aten.matmul.default: _multiplied, aten.bmm.default: _multiplied,
    aten.add.Tensor: _added, aten.sub.Tensor: _added,
    aten.mul.Tensor: _scaled, aten.mul.Scalar: _scaled, aten.div.Tensor: _scaled, aten.div.Scalar: _scaled,
    **dict.fromkeys(_COPIES, _first),
    aten.neg.default: _first, aten.relu.default: _first, aten.gelu.default: _first, aten.silu.default: _first,
    aten.slice.Tensor: _first, aten.abs.default: _first, aten._to_copy.default: _first, aten.to.dtype: _first,
    aten.tanh.default: _bounded, aten.sigmoid.default: _bounded, aten.softmax.int: _bounded,
    aten.permute.default: _moved, aten.transpose.int: _moved,
    aten.view.default: _viewed, aten.reshape.default: _viewed, aten._unsafe_view.default: _viewed,
    aten.flatten.using_ints: _viewed, aten.unflatten.int: _viewed,
    aten.unsqueeze.default: _unsqueezed, aten.select.int: _selected,
    aten.repeat_interleave.self_int: _repeated, aten.expand.default: _expanded,
    aten.cat.default: _joined, aten.stack.default: _joined,
    operator.getitem: _element, aten.embedding.default: _looked_up,
}  # fmt: skip
