"""Cross layers of low rank, ``x' = x0 * (W z + b) + x`` with ``z = V x`` short: the user's columns per candidate.

With the user's columns u of x0, and W_u, V'_u the weights that meet them, the next product reads of them

    V'_u (u * (W_u z + b_u)) = (V'_u diag(u) W_u) z + V'_u (u * b_u)

of which the matrix in brackets, as small as z is short, and the last vector need no item. So the user's columns are
never computed for a candidate: each later product reads every z before it through one such matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from graphs.base.cost import numel
from graphs.split.blocks.regions import Regions
from graphs.split.column_provenance import Provenance, is_user

aten = torch.ops.aten

__all__ = ["Crosses"]

# z must be this many times shorter than what is made of it.
_SHORTER = 4


@dataclass(frozen=True)
class _Low:
    """``W z + b`` with a constant W [D, r] and b [D]."""

    z: fx.Node
    weight: fx.Node
    held: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class _Crossed:
    """Columns of which ``other``, those of the item, are a tensor; the user's are ``sum_j a (W_j z_j + b_j) + base``.

    ``factor`` has the segments of a; ``base``, if any, is the user's alone.
    """

    factor: Provenance
    lows: tuple[_Low, ...]
    base: fx.Node | None
    other: fx.Node


@dataclass
class Crosses:
    """Follows cross layers through a graph; ``cost`` is what moving an element is worth, in FLOPs."""

    regions: Regions
    cost: int
    lows: dict[fx.Node, _Low] = field(default_factory=dict)
    crossed: dict[fx.Node, _Crossed] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> int | None:
        """Note a part of a cross layer; replace a product that reads one, and return the FLOPs saved."""
        if node.target is aten.linear.default and node.args[0] in self.crossed:
            return self._product(node, self.crossed[node.args[0]])  # type: ignore[index]  # a node
        if node.target is aten.linear.default:
            self._low(node)
        elif node.target is aten.add.Tensor and not node.kwargs:
            self._sum(node)
        elif node.target is aten.mul.Tensor:
            self._cross(node)
        return None

    def _low(self, node: fx.Node) -> None:
        z, weight = node.args[:2]
        held = self.regions.rewriter.value(weight)
        if not isinstance(z, fx.Node) or not isinstance(weight, fx.Node) or held is None:
            return
        bias = node.args[2] if len(node.args) > 2 else None
        constant = self.regions.rewriter.value(bias)
        if z in self.regions.known or z.meta["val"].dim() != 2 or (bias is not None and constant is None):
            return
        if held.shape[0] >= _SHORTER * held.shape[1]:
            self.lows[node] = _Low(z, weight, held, constant)

    def _sum(self, node: fx.Node) -> None:
        left, right = node.args[:2]
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
            return
        for a, b in ((left, right), (right, left)):
            if a in self.lows:
                low, constant = self.lows[a], self.regions.rewriter.value(b)
                if constant is not None and constant.shape == low.held.shape[:1] and not constant.is_meta:
                    bias = constant if low.bias is None else constant + low.bias
                    self.lows[node] = _Low(low.z, low.weight, low.held, bias)
                return
            if a in self.crossed:
                self._joined(node, self.crossed[a], b)
                return

    def _joined(self, node: fx.Node, first: _Crossed, second: fx.Node) -> None:
        """Note a sum with another cross, or with columns of the same sides."""
        found = self.crossed.get(second)
        if found is None:
            segments = self.regions.known.get(second)
            if segments is None or not self._alike(segments, first.factor):
                return
            lows: tuple[_Low, ...] = ()
            base: fx.Node | None = self._side(node, segments, user=True)
            other = self._side(node, segments, user=False)
        else:
            if not self._alike(found.factor, first.factor) or found.factor.segments != first.factor.segments:
                return
            lows, base, other = found.lows, found.base, found.other
        call = self.regions.rewriter.call
        bases = [b for b in (first.base, base) if b is not None]
        total = bases[0] if len(bases) == 1 else call(node, aten.add.Tensor, *bases) if bases else None
        joined = call(node, aten.add.Tensor, first.other, other)
        self.crossed[node] = _Crossed(first.factor, first.lows + lows, total, joined)

    def _cross(self, node: fx.Node) -> None:
        left, right = node.args[:2]
        for data, scaled in ((left, right), (right, left)):
            found = self.regions.known.get(data) if isinstance(data, fx.Node) else None
            low = self.lows.get(scaled) if isinstance(scaled, fx.Node) else None
            if found is None or low is None or not found.plain or found.axis != 1 or node.meta["val"].dim() != 2:
                continue
            if sum(found.sizes()) != low.held.shape[0]:
                continue
            call = self.regions.rewriter.call
            bias = None if low.bias is None else self._columns(low, found, user=False, bias=True)
            part = call(node, aten.linear.default, low.z, self._columns(low, found, user=False), bias)
            other = call(node, aten.mul.Tensor, self._side(node, found, user=False), part)
            self.crossed[node] = _Crossed(found, (low,), None, other)
            return

    def _product(self, node: fx.Node, x: _Crossed) -> int | None:
        """Replace ``V' x`` by the products with the item's columns and with every z."""
        rewriter = self.regions.rewriter
        call, weight = rewriter.call, node.args[1]
        held = rewriter.value(weight)
        if (
            not isinstance(weight, fx.Node)
            or held is None
            or held.dim() != 2
            or held.shape[1] != sum(x.factor.sizes())
        ):
            return None
        out = int(held.shape[0])
        width = sum(s for s, n in zip(x.factor.sizes(), x.factor.segments, strict=True) if is_user(rewriter, n))
        short = sum(int(low.held.shape[1]) for low in x.lows)
        saved = 2 * out * (width - short)
        if list(node.args[0].users) == [node]:  # type: ignore[union-attr]  # a node
            saved += 2 * width * short  # nothing else reads the user's columns
        # Per candidate, the matrices are read, and the results of their products added.
        if saved <= self.cost * (out * short + len(x.lows) * numel(node.meta["val"])):
            return None
        meets = _Low(node, weight, held.T, None)
        mine, theirs = (self._columns(meets, x.factor, user=user, turned=True) for user in (True, False))
        bias = node.args[2] if len(node.args) > 2 else None
        total = call(node, aten.linear.default, x.other, theirs, bias)
        u = self._side(node, x.factor, user=True)
        constant = x.base
        turned = call(node, aten.transpose.int, mine, 0, 1)  # [D_u, out]
        for low in x.lows:
            stretched = self._columns(low, x.factor, user=True)
            scaled = call(node, aten.mul.Tensor, call(node, aten.unsqueeze.default, u, 2), stretched)  # [U, D_u, r]
            matrix = call(node, aten.matmul.default, call(node, aten.transpose.int, scaled, 1, 2), turned)
            row = call(node, aten.matmul.default, call(node, aten.unsqueeze.default, low.z, 1), matrix)  # [N, 1, out]
            total = call(node, aten.add.Tensor, total, call(node, aten.squeeze.dims, row, [1]))
            if low.bias is not None:
                term = call(node, aten.mul.Tensor, u, self._columns(low, x.factor, user=True, bias=True))
                constant = term if constant is None else call(node, aten.add.Tensor, constant, term)
        if constant is not None:
            total = call(node, aten.add.Tensor, total, call(node, aten.linear.default, constant, mine))
        rewriter.replace(node, total)
        return saved

    def _alike(self, a: Provenance, b: Provenance) -> bool:
        sides = [[is_user(self.regions.rewriter, s) for s in p.segments] for p in (a, b)]
        return a.plain and a.axis == b.axis and a.sizes() == b.sizes() and sides[0] == sides[1]

    def _side(self, like: fx.Node, found: Provenance, user: bool) -> fx.Node:
        """Return the columns of a side, joined."""
        mine = [s for s in found.segments if is_user(self.regions.rewriter, s) == user]
        return self.regions.joined(like, mine, found.axis)

    def _columns(
        self, low: _Low, found: Provenance, *, user: bool, bias: bool = False, turned: bool = False
    ) -> fx.Node:
        """Return a constant with the rows of W, or the elements of b, that make the columns of a side."""
        rewriter, ends, at = self.regions.rewriter, [], 0
        for segment, size in zip(found.segments, found.sizes(), strict=True):
            if is_user(rewriter, segment) == user:
                ends.append((at, size))
            at += size
        tensor = low.bias if bias else low.held
        assert tensor is not None
        parts = [tensor.narrow(0, low_end, size) for low_end, size in ends]
        part = parts[0] if len(parts) == 1 else torch.cat(parts)
        name = f"{rewriter.name(low.weight)}.{'shift_' if bias else ''}{'user' if user else 'item'}"
        return rewriter.constant(name, part.T if turned else part)
