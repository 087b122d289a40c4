"""Which elements of a tensor are known without its inputs: what masks hide before a softmax, or set to 0 after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from graphs.split.rewriter import Rewriter

aten = torch.ops.aten

# What a mask adds to a score, or replaces it by, to hide it. e to the power of this is 0 in every precision, also if
# scores differ by thousands.
HIDDEN = -1e4

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Known:
    """The elements of a tensor that are the same for every input: ``value`` where ``known`` is true.

    Both have the tensor's rank; axes along which they do not vary, the batch among them, have size 1.
    """

    value: Tensor
    known: Tensor


@dataclass
class KnownValues:
    """What is known of the nodes of a graph, computed when asked for."""

    rewriter: Rewriter
    found: dict[fx.Node, Known | None] = field(default_factory=dict)

    def of(self, node: fx.Node) -> Known | None:
        """Return the known elements of a node, None if there are none."""
        if node not in self.found:
            self.found[node] = self._of(node)
        return self.found[node]

    def zero(self, node: fx.Node) -> Tensor | None:
        """Return which elements are 0 for every finite input; booleans of the node's rank, sizes 1 broadcast."""
        known = self.of(node)
        return None if known is None else known.known & (known.value == 0)

    def hidden(self, node: fx.Node) -> Tensor | None:
        """Return which elements of the scores ``node`` a softmax over the last axis certainly makes 0."""
        known = self.of(node)
        if known is None or not known.value.is_floating_point():
            return None
        hidden = known.known & (known.value == -torch.inf)
        low = known.known & (known.value <= HIDDEN)
        # Of a row all of whose scores are hidden by a finite number, softmax is not 0. Only if no mask depends on
        # data is it certain that every row sees something.
        if bool((low & ~hidden).any()) and self._masks_are_constant(node):
            sees = (~low).expand(*low.shape[:-1], node.meta["val"].shape[-1]).any(-1)
            return low if bool(sees.all()) else hidden
        return hidden

    def _masks_are_constant(self, node: fx.Node) -> bool:
        """Check that between the product and ``node``, data meets constants only."""
        while node.op == "call_function" and node.target not in (aten.matmul.default, aten.bmm.default):
            data = [n for n in node.all_input_nodes if self.rewriter.sides[n] != "neutral"]
            if len(data) != 1:
                return False
            node = data[0]
        return node.op == "call_function"

    def _of(self, node: fx.Node) -> Known | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or node.op == "placeholder":
            return None
        constant = self.rewriter.value(node)
        if constant is not None:
            # Weights that are read when a graph is written have no values yet.
            if constant.is_meta:
                return None
            return Known(constant, torch.ones_like(constant, dtype=torch.bool))
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        filled = _FILLED.get(node.target)
        if filled is not None:
            one = torch.full([1] * value.dim(), filled, dtype=value.dtype)
            return Known(one, torch.ones_like(one, dtype=torch.bool))
        rule = _RULES.get(node.target)
        if rule is not None:
            return rule(self, node)
        return self._pointwise(node) if torch.Tag.pointwise in node.target.tags else None

    def operands(self, node: fx.Node) -> dict[fx.Node, Known | None]:
        """Return what is known of the tensors a node reads, in its rank."""
        rank = node.meta["val"].dim()
        found: dict[fx.Node, Known | None] = {}
        for source in node.all_input_nodes:
            known = self.of(source)
            found[source] = None if known is None else Known(_ranked(known.value, rank), _ranked(known.known, rank))
        return found

    def _pointwise(self, node: fx.Node) -> Known | None:
        """An element is known if all operands' elements are, or if one of them decides alone."""
        operands = self.operands(node)
        known: Known | None = None
        given = {n: k for n, k in operands.items() if k is not None}
        if not given:
            return None
        if len(given) == len(operands):
            values = {n: k.value for n, k in given.items()}
            arguments, options = pytree.tree_map_only(fx.Node, values.get, (node.args, node.kwargs))
            every = _all([k.known for k in given.values()])
            known = _known(node.target(*arguments, **options), every)  # type: ignore[operator]  # an aten overload
        decides = _DECIDES.get(node.target)
        if decides is not None:
            for position, source in enumerate(node.args[:2]):
                if isinstance(source, fx.Node) and given.get(source) is not None:
                    known = _either(known, decides(given[source], position))
        return known


def taken(tensor: Tensor, ranges: Mapping[int, Ranges]) -> Tensor:
    """Return the elements of a tensor within ranges of some axes; axes of size 1 are broadcast, hence kept."""
    for axis, chosen in ranges.items():
        if tensor.shape[axis] != 1:
            parts = [tensor.narrow(axis, low, high - low) for low, high in chosen]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
    return tensor


def _ranked(tensor: Tensor, rank: int) -> Tensor:
    return tensor.reshape(*[1] * (rank - tensor.dim()), *tensor.shape)


def _all(flags: list[Tensor]) -> Tensor:
    result = flags[0]
    for other in flags[1:]:
        result = result & other
    return result


def _known(value: Tensor, known: Tensor) -> Known | None:
    return Known(value, known) if bool(known.any()) else None


def _either(first: Known | None, second: Known | None) -> Known | None:
    if first is None or second is None:
        return second if first is None else first
    return Known(torch.where(first.known, first.value, second.value), first.known | second.known)


def _zeroes(operand: Known, position: int) -> Known | None:
    del position
    return _known(torch.zeros_like(operand.value), operand.known & (operand.value == 0))


def _numerator(operand: Known, position: int) -> Known | None:
    return _zeroes(operand, position) if position == 0 else None


def _hides(operand: Known, position: int) -> Known | None:
    del position
    if not operand.value.is_floating_point():
        return None
    return _known(operand.value, operand.known & (operand.value <= HIDDEN))


def _subtracts(operand: Known, position: int) -> Known | None:
    if not operand.value.is_floating_point():
        return None
    return _hides(Known(-operand.value, operand.known) if position else operand, position)


def _false(operand: Known, position: int) -> Known | None:
    return _zeroes(operand, position)


def _true(operand: Known, position: int) -> Known | None:
    del position
    return _known(operand.value, operand.known & (operand.value != 0)) if operand.value.dtype is torch.bool else None


def _chosen(values: KnownValues, node: fx.Node) -> Known | None:
    """Where the mask is known, the chosen side; elsewhere what both sides agree on."""
    operands = values.operands(node)
    if node.target is aten.where.self:
        mask, yes, no = node.args[:3]
    else:
        no, mask, yes = node.args[:3]
    rank = node.meta["val"].dim()

    def known(side: object) -> Known | None:
        if isinstance(side, fx.Node):
            return operands[side]
        assert isinstance(side, (bool, int, float))
        one = torch.full([1] * rank, side, dtype=node.meta["val"].dtype)
        return Known(one, torch.ones_like(one, dtype=torch.bool))

    chooses, a, b = known(mask), known(yes), known(no)
    result: Known | None = None
    if a is not None and b is not None:
        result = _known(a.value, a.known & b.known & (a.value == b.value))
    if chooses is None:
        return result
    for side, flags in ((a, chooses.value), (b, ~chooses.value)):
        if side is not None:
            result = _either(result, _known(side.value, side.known & chooses.known & flags))
    return result


def _moved(values: KnownValues, node: fx.Node) -> Known | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    known = values.of(source)
    if known is None:
        return None
    call: Callable[[Tensor], Tensor] = lambda t: node.target(t, *node.args[1:], **node.kwargs)  # type: ignore[operator]  # noqa: E731
    if node.target is aten.slice.Tensor:
        dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]  # an int
        if known.value.shape[dim] == 1:
            return known
    return Known(call(known.value), call(known.known))


def _selected(values: KnownValues, node: fx.Node) -> Known | None:
    source, dim, index = node.args[:3]
    assert isinstance(source, fx.Node)
    known = values.of(source)
    if known is None:
        return None
    at: Any = index if known.value.shape[dim] != 1 else 0  # type: ignore[index]  # an int
    return Known(known.value.select(dim, at), known.known.select(dim, at))  # type: ignore[arg-type]  # ints


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
    rank, leading = len(after), known.value.dim() - kept
    if any(s != 1 for s in known.value.shape[:leading]):
        return None
    value, flags = (t.reshape(t.shape[leading:]) for t in (known.value, known.known))
    return Known(_ranked(value, rank), _ranked(flags, rank))


def _same(values: KnownValues, node: fx.Node) -> Known | None:
    return values.of(node.args[0]) if isinstance(node.args[0], fx.Node) else None


def _triangle(values: KnownValues, node: fx.Node) -> Known | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape[-2:]
    known = values.of(source)
    if known is None or any(isinstance(s, torch.SymInt) for s in shape):
        return None
    value, flags = (t.expand(*t.shape[:-2], *shape) for t in (known.value, known.known))
    outside = node.target(torch.ones(*shape, dtype=torch.bool), *node.args[1:]).logical_not()  # type: ignore[operator]  # an aten overload
    return Known(node.target(value, *node.args[1:]), flags | outside)  # type: ignore[operator]  # an aten overload


def _softmax(values: KnownValues, node: fx.Node) -> Known | None:
    source, dim = node.args[:2]
    assert isinstance(source, fx.Node)
    if dim not in (-1, source.meta["val"].dim() - 1):
        return None
    hidden = values.hidden(source)
    return None if hidden is None else _known(torch.zeros_like(hidden, dtype=node.meta["val"].dtype), hidden)


_FILLED: dict[Any, int] = {
    aten.ones.default: 1, aten.zeros.default: 0, aten.ones_like.default: 1, aten.zeros_like.default: 0,
    aten.new_ones.default: 1, aten.new_zeros.default: 0,
}  # fmt: skip
_DECIDES: dict[Any, Callable[[Known, int], Known | None]] = {
    aten.mul.Tensor: _zeroes, aten.div.Tensor: _numerator, aten.add.Tensor: _hides, aten.sub.Tensor: _subtracts,
    aten.bitwise_and.Tensor: _false, aten.logical_and.default: _false,
    aten.bitwise_or.Tensor: _true, aten.logical_or.default: _true,
}  # fmt: skip
_RULES: dict[Any, Callable[[KnownValues, fx.Node], Known | None]] = {
    aten.where.self: _chosen, aten.masked_fill.Scalar: _chosen, aten.masked_fill.Tensor: _chosen,
    aten.transpose.int: _moved, aten.permute.default: _moved, aten.unsqueeze.default: _moved,
    aten.slice.Tensor: _moved, aten.select.int: _selected, aten.expand.default: _expanded,
    aten.view.default: _viewed, aten.reshape.default: _viewed, aten._unsafe_view.default: _viewed,
    aten.clone.default: _same, aten.contiguous.default: _same, aten.alias.default: _same,
    aten.dropout.default: _same, aten.tril.default: _triangle, aten.triu.default: _triangle,
    aten.softmax.int: _softmax, aten._softmax.default: _softmax, aten._safe_softmax.default: _softmax,
}  # fmt: skip
