"""What is known of the elements of a tensor without inputs: what masks hide before a softmax, or zero after it.

Every element has bounds that hold for every input; where both are equal, its value is known. A mask hides an element
if its upper bound is so far below the lower bound of another one in its row that its share of the softmax is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from graphs.base.cost import gemm_flops
from graphs.split.blocks.bounds import BOUNDED, MONOTONE, Known, applied, between, everything, exact
from graphs.split.blocks.norm_bounds import LengthBounds
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten

# Products of data, norms and sums of which nothing is known are taken to be smaller than this, as scores are.
LARGEST = 1e8

# What is certainly smaller than this makes such a sum no larger: looked-up vectors in a residual sum.
SMALL = 1e6

# Below the largest score of its row by this much, a score has a share of exactly 0 in every precision: e^-746 is 0 in
# float64.
UNDERFLOW = 1000.0

Ranges = tuple[tuple[int, int], ...]


@dataclass
class KnownValues:
    """What is known of the nodes of a graph, computed when asked for."""

    rewriter: Rewriter
    found: dict[fx.Node, Known | None] = field(default_factory=dict)
    lengths: LengthBounds = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = LengthBounds(self.rewriter)

    def of(self, node: fx.Node) -> Known | None:
        """Return the known elements of a node, None if there are none."""
        if node not in self.found:
            self.found[node] = self._of(node)
        return self.found[node]

    def zero(self, node: fx.Node) -> Tensor | None:
        """Return which elements are 0 for every finite input; booleans of the node's rank, sizes 1 broadcast."""
        known = self.of(node)
        return None if known is None else known.known & (known.low == 0)

    def hidden(self, node: fx.Node) -> Tensor | None:
        """Return which elements of the scores ``node`` a softmax over the last axis certainly makes 0.

        Of a row all of whose scores are hidden by a finite number, none is certain: softmax is their mean.
        """
        known = self.of(node)
        if known is None or not known.low.is_floating_point():
            return None
        low, high = known.low.double(), known.high.double()
        return (high == -torch.inf) | (high - low.amax(-1, keepdim=True) <= -UNDERFLOW)

    def finite(self, node: fx.Node) -> Tensor | None:
        """Return which elements of the scores ``node`` a finite number keeps below 0, so that nothing is certain."""
        known = self.of(node)
        if known is None or not known.low.is_floating_point():
            return None
        return (known.high < -1) & (known.high > -torch.inf)

    def _of(self, node: fx.Node) -> Known | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or node.op == "placeholder":
            return None
        constant = self.rewriter.value(node)
        if constant is not None:
            # Weights that are read when a graph is written have no values yet.
            return None if constant.is_meta else exact(constant)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        filled = _filled(node)
        if filled is not None:
            return exact(torch.full([1] * value.dim(), filled, dtype=value.dtype))
        rule = _RULES.get(node.target)
        if rule is not None:
            return rule(self, node)
        if torch.Tag.pointwise in node.target.tags or node.target in (aten._to_copy.default, aten.to.dtype):
            return self._pointwise(node)
        if not value.is_floating_point():
            return None
        size = self.lengths.score(node)
        if size < LARGEST:
            return between(-size, size, value)
        return between(-LARGEST, LARGEST, value) if self._is_data(node) else None

    def _is_data(self, node: fx.Node) -> bool:
        """Return whether a node holds products, norms or sums of what no constant of a mask has made large."""
        bounds = [self.of(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if node.target in _SUMS and None in bounds:
            return False
        if node.target not in _SUMS and node.target not in _NORMS and not gemm_flops(node):
            return False
        return all(k is None or bool((_size(k) <= LARGEST).all()) for k in bounds)

    def operands(self, node: fx.Node) -> dict[fx.Node, Known | None]:
        """Return what is known of the tensors a node reads, in its rank."""
        rank = node.meta["val"].dim()
        found: dict[fx.Node, Known | None] = {}
        for source in node.all_input_nodes:
            known = self.of(source)
            found[source] = None if known is None else applied(lambda t: _ranked(t, rank), known)
        return found

    def _pointwise(self, node: fx.Node) -> Known | None:
        """Apply a rule of bounds, or the op itself to both bounds of a monotone one; and to all that is known."""
        operands = self.operands(node)
        if not all(isinstance(n.meta.get("val"), Tensor) for n in operands):
            return None
        if all(known is None and n.meta["val"].dtype is not torch.bool for n, known in operands.items()):
            return None
        given = {
            n: everything(n.meta["val"], node.meta["val"].dim()) if k is None else k for n, k in operands.items()
        }

        def run(bound: Callable[[Known], Tensor]) -> Tensor:
            values = {n: bound(k) for n, k in given.items()}
            arguments, options = pytree.tree_map_only(fx.Node, values.get, (node.args, node.kwargs))
            return node.target(*arguments, **options)  # type: ignore[operator, no-any-return]  # an aten overload

        result: Known | None = None
        rule = BOUNDED.get(node.target)
        if rule is not None:
            arguments = [given[a] if isinstance(a, fx.Node) else a for a in node.args]
            result = rule(node.meta["val"].dtype, arguments, dict(node.kwargs))
            if result is not None and result.low.is_floating_point():
                result = _kept_data(result, list(given.values()))
        elif node.target in MONOTONE:
            result = Known(run(lambda k: k.low), run(lambda k: k.high))
        if result is not None and _is_unknown(result, operands):
            result = None
        every = torch.tensor(True)
        for known in given.values():
            every = every & known.known
        if not bool(every.any()):
            return result
        value = run(lambda k: k.low)
        if result is None:
            result = everything(value, value.dim())
        return Known(torch.where(every, value, result.low), torch.where(every, value, result.high))


def _size(known: Known) -> Tensor:
    """Return the largest size that each element can have."""
    return torch.maximum(known.low.double().abs(), known.high.double().abs())


def _is_unknown(result: Known, operands: Mapping[fx.Node, Known | None]) -> bool:
    """Return whether nothing is known of what is made of unknown and small numbers, as a norm times its gain."""
    unknown = [n.meta["val"].dtype for n, known in operands.items() if known is None]
    small = all(bool((_size(known) <= LARGEST).all()) for known in operands.values() if known is not None)
    # A boolean is known: times a number, it is 0 or that.
    floats = bool(unknown) and all(dtype.is_floating_point for dtype in unknown)
    return floats and small and result.low.is_floating_point() and bool((_size(result) > LARGEST).all())


def _kept_data(result: Known, operands: list[Known]) -> Known:
    """Sums and products of data, and of data with small constants, are data of the same size."""
    every, some = torch.tensor(True), torch.tensor(False)
    for known in operands:
        constant = (known.known & (_size(known) <= LARGEST)) | (_size(known) <= SMALL)
        data = (known.low == -LARGEST) & (known.high == LARGEST)
        every, some = every & (constant | data), some | data
    # Of the same size, not smaller: a sum of products with cosines and sines is data again.
    kept = every & some & ~result.known
    return Known(torch.where(kept, -LARGEST, result.low), torch.where(kept, LARGEST, result.high))


def taken(tensor: Tensor, ranges: Mapping[int, Ranges]) -> Tensor:
    """Return the elements of a tensor within ranges of some axes; axes of size 1 are broadcast, hence kept."""
    for axis, chosen in ranges.items():
        if tensor.shape[axis] != 1:
            parts = [tensor.narrow(axis, low, high - low) for low, high in chosen]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
    return tensor


def _ranked(tensor: Tensor, rank: int) -> Tensor:
    return tensor.reshape(*[1] * (rank - tensor.dim()), *tensor.shape)


def _filled(node: fx.Node) -> float | None:
    """Return the number that a tensor of one number holds."""
    if node.target in _FILLED:
        return _FILLED[node.target]
    if node.target in _FULL:
        position = {aten.new_full.default: 2, aten.scalar_tensor.default: 0}.get(node.target, 1)
        number = node.args[position] if len(node.args) > position else node.kwargs.get("fill_value")
        return number if isinstance(number, (bool, int, float)) else None
    return None


def _chosen(values: KnownValues, node: fx.Node) -> Known | None:
    """Where the mask is known, the chosen side; elsewhere the bounds of both."""
    operands = values.operands(node)
    if node.target is aten.where.self:
        mask, yes, no = node.args[:3]
    else:
        no, mask, yes = node.args[:3]
    value = node.meta["val"]

    def known(side: object) -> Known:
        if isinstance(side, fx.Node):
            found = operands[side]
            return everything(side.meta["val"], value.dim()) if found is None else found
        assert isinstance(side, (bool, int, float))
        return exact(torch.full([1] * value.dim(), side, dtype=value.dtype))

    m, a, b = known(mask), known(yes), known(no)
    a, b = (applied(lambda t: t.to(value.dtype), k) for k in (a, b))
    low = torch.where(m.low, a.low, torch.where(m.high, torch.minimum(a.low, b.low), b.low))
    high = torch.where(m.low, a.high, torch.where(m.high, torch.maximum(a.high, b.high), b.high))
    return Known(low, high)


def _moved(values: KnownValues, node: fx.Node) -> Known | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    known = values.of(source)
    if known is None:
        return None
    call: Callable[[Tensor], Tensor] = lambda t: node.target(t, *node.args[1:], **node.kwargs)  # type: ignore[operator]  # noqa: E731
    if node.target is aten.slice.Tensor:
        dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]  # an int
        if known.low.shape[dim] == 1:
            return known
    return applied(call, known)


def _selected(values: KnownValues, node: fx.Node) -> Known | None:
    source, dim, index = node.args[:3]
    assert isinstance(source, fx.Node)
    known = values.of(source)
    if known is None:
        return None
    at: Any = index if known.low.shape[dim] != 1 else 0  # type: ignore[index]  # an int
    return applied(lambda t: t.select(dim, at), known)  # type: ignore[arg-type]  # an int


def _expanded(values: KnownValues, node: fx.Node) -> Known | None:
    known = values.operands(node)[node.args[0]] if isinstance(node.args[0], fx.Node) else None
    return known


def _viewed(values: KnownValues, node: fx.Node) -> Known | None:
    """A view keeps what is known if it reshapes only leading axes along which that does not vary."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    known, before, after = values.of(source), source.meta["val"].shape, node.meta["val"].shape
    if known is None:
        return None
    kept = 0
    for old, new in zip(reversed(before), reversed(after), strict=False):
        if isinstance(old, torch.SymInt) or isinstance(new, torch.SymInt) or old != new:
            break
        kept += 1
    rank, leading = len(after), known.low.dim() - kept
    if any(s != 1 for s in known.low.shape[:leading]):
        return None
    return applied(lambda t: _ranked(t.reshape(t.shape[leading:]), rank), known)


def _squeezed(values: KnownValues, node: fx.Node) -> Known | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    known, before = values.of(source), source.meta["val"].shape
    if known is None:
        return None
    given = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    gone = [int(d) % len(before) for d in given]  # type: ignore[arg-type]  # ints
    gone = [d for d in gone if not isinstance(before[d], torch.SymInt) and before[d] == 1]
    shape = [s for d, s in enumerate(known.low.shape) if d not in gone]
    return applied(lambda t: t.reshape(shape), known)


def _repeated(values: KnownValues, node: fx.Node) -> Known | None:
    """Axes along which nothing varies, or that are not repeated."""
    source, repeats = node.args[:2]
    assert isinstance(source, fx.Node)
    known = values.operands(node)[source]
    assert isinstance(repeats, (list, tuple))
    varies = known is not None and any(s != 1 and r != 1 for s, r in zip(known.low.shape, repeats, strict=True))
    return None if varies else known


def _joined(values: KnownValues, node: fx.Node) -> Known | None:
    """The parts side by side: padding of the user's positions, and what is constant for the item's."""
    given, rank = node.args[0], node.meta["val"].dim()
    assert isinstance(given, (list, tuple))
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank  # type: ignore[arg-type]  # an int
    parts, dtype = [], node.meta["val"].dtype
    if all(values.of(n) is None for n in given if isinstance(n, fx.Node)):
        return None
    for source in given:
        assert isinstance(source, fx.Node)
        length, found = source.meta["val"].shape[dim], values.of(source)
        if isinstance(length, torch.SymInt) or source.meta["val"].dim() != rank:
            return None
        known = everything(source.meta["val"], rank) if found is None else found
        shape = [int(length) if d == dim else -1 for d in range(rank)]
        parts.append(applied(lambda t, shape=shape: t.expand(shape).to(dtype), known))  # type: ignore[misc]  # mypy has no bound default
    rest = [p.low.select(dim, 0).shape for p in parts]
    sizes = [max(each) for each in zip(*rest, strict=True)]
    whole = [p.low.shape[dim] for p in parts]
    lows, highs = (
        [t.expand(*sizes[:dim], n, *sizes[dim:]) for t, n in zip(side, whole, strict=True)]
        for side in ([p.low for p in parts], [p.high for p in parts])
    )
    low, high = torch.cat(lows, dim), torch.cat(highs, dim)
    first = (low.narrow(dim, 0, 1), high.narrow(dim, 0, 1))
    same = torch.equal(low, first[0].expand_as(low)) and torch.equal(high, first[1].expand_as(high))
    return Known(*first) if same else Known(low, high)


def _looked_up(values: KnownValues, node: fx.Node) -> Known | None:
    table = values.rewriter.value(node.args[0])
    if table is None or table.is_meta or not 0 < table.numel() <= _SMALL_TABLE:
        return None
    return between(float(table.min()), float(table.max()), node.meta["val"])


def _same(values: KnownValues, node: fx.Node) -> Known | None:
    return values.of(node.args[0]) if isinstance(node.args[0], fx.Node) else None


def _triangle(values: KnownValues, node: fx.Node) -> Known | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape[-2:]
    if any(isinstance(s, torch.SymInt) for s in shape):
        return None
    known = values.of(source)
    if known is None:
        known = everything(source.meta["val"], source.meta["val"].dim())
    return applied(lambda t: node.target(t.expand(*t.shape[:-2], *shape), *node.args[1:]), known)  # type: ignore[operator]  # an aten overload


def _softmax(values: KnownValues, node: fx.Node) -> Known | None:
    source, dim = node.args[:2]
    assert isinstance(source, fx.Node)
    if dim not in (-1, source.meta["val"].dim() - 1):
        return None
    hidden = values.hidden(source)
    if hidden is None:
        return None
    zero = torch.zeros_like(hidden, dtype=node.meta["val"].dtype)
    return Known(zero, zero.masked_fill(~hidden, 1.0))


_FILLED: dict[Any, int] = {
    aten.ones.default: 1, aten.zeros.default: 0, aten.ones_like.default: 1, aten.zeros_like.default: 0,
    aten.new_ones.default: 1, aten.new_zeros.default: 0,
}  # fmt: skip
# Relative biases are in such tables; others are not worth the time to read them.
_SMALL_TABLE = 1 << 20
_FULL = (aten.full.default, aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default)
_SUMS = (aten.sum.dim_IntList, aten.mean.dim, aten.sum.default)
_NORMS = (aten.layer_norm.default, aten.rms_norm.default)
_RULES: dict[Any, Callable[[KnownValues, fx.Node], Known | None]] = {
    aten.where.self: _chosen, aten.masked_fill.Scalar: _chosen, aten.masked_fill.Tensor: _chosen,
    aten.transpose.int: _moved, aten.permute.default: _moved, aten.unsqueeze.default: _moved,
    aten.slice.Tensor: _moved, aten.squeeze.dim: _squeezed, aten.squeeze.dims: _squeezed,
    aten.repeat.default: _repeated,
    aten.cat.default: _joined, aten.embedding.default: _looked_up,
    aten.select.int: _selected, aten.expand.default: _expanded,
    aten.view.default: _viewed, aten.reshape.default: _viewed, aten._unsafe_view.default: _viewed,
    aten.clone.default: _same, aten.contiguous.default: _same, aten.alias.default: _same,
    aten.dropout.default: _same, aten.tril.default: _triangle, aten.triu.default: _triangle,
    aten.softmax.int: _softmax, aten._softmax.default: _softmax, aten._safe_softmax.default: _softmax,
}  # fmt: skip
