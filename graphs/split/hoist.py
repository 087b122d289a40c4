"""Hoisting: move the user columns of per-candidate products to the user graph, exactly.

The algebra, with a row x = [u | g] whose columns u are the same for all candidates of a request (in any order:
provenance finds them through joins, views and element-wise ops):

* product           x W = u W_u + g W_g. The first term needs no item; W_u and W_g are views of W.
* product over rows W [U; G] = W_U U + W_G G (a constant W that mixes tokens: UniMixer's W_G[G, U] h_U, RSA).
* free axis         f([U; G]) = [f(U); f(G)] for any product along another axis (K and V of user tokens).
* sum               sum([u | g]) = sum(u) + sum(g), and the mean likewise (the square of a factorization machine).
* shares            softmax over positions of both sides, with the user's sums: graphs.split.blocks.weighted.
* cross layers      x0 * (W z) + x of low rank, by a matrix per user: graphs.split.blocks.low_rank.
* positions         products of data with data, attention among them: graphs.split.blocks.
* RMSNorm           r = ((|u|^2 + |g|^2) / K + eps)^-1/2;  W (gamma x r) = r (W_u (gamma_u u) + W_g (gamma_g g)).
* LayerNorm         with means m_u, m_g and d = m_g - m_u: the mean is m_u + d K_g/K, the sum of squares about it
                    |u - m_u|^2 + |g - m_g|^2 + d^2 K_u K_g / K (pairwise, so nothing cancels), and
                    W (gamma (x - m)) = W_u (gamma_u (u - m_u)) + W_g (gamma_g (g - m_g)) + d w, with the constant
                    w = (K_u W_g gamma_g - K_g W_u gamma_u) / K;  W beta joins the bias.

Only sums are regrouped, so the result is equal in exact arithmetic and differs by rounding otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphs.base.cost import flops, gemm_flops, nbytes, numel
from graphs.rows.reach import descendants
from graphs.rows.sides import NodeSide
from graphs.split.blocks.in_order import in_order
from graphs.split.blocks.known_values import KnownValues
from graphs.split.blocks.low_rank import Crosses
from graphs.split.blocks.narrowing import narrow_positions
from graphs.split.blocks.positions import separated
from graphs.split.blocks.products import PRODUCTS, data_product, is_data_product, read_once
from graphs.split.blocks.regions import Regions
from graphs.split.blocks.unmerged import unmerged
from graphs.split.blocks.weighted import Weighted, weighted
from graphs.split.blocks.written_out import simplified
from graphs.split.column_provenance import Provenance, is_user, provenance_of
from graphs.split.prune_columns import narrow_products
from graphs.split.rewriter import Rewriter
from graphs.split.row_constants import fold_row_constants
from graphs.trace.node_location import location_of
from graphs.trace.trace import Traced

aten = torch.ops.aten

# A hoisted product adds a read of its result and an addition per candidate. Moving one element costs about as much as
# this many FLOPs of a GEMM on one core, so a product must save more than that per element of its result.
FLOPS_PER_ELEMENT = 32


@dataclass(frozen=True)
class Hoisted:
    """A product whose user columns moved: FLOPs saved per candidate, and bytes of its result per user."""

    where: str
    saved_flops: int
    state_bytes: int


@dataclass(frozen=True)
class Unmasked:
    """An attention whose user positions see item positions, so that all of it runs per candidate.

    ``movable_flops`` estimates the FLOPs per candidate that a mask between them would move to once per request: the
    user positions' share of the attention and of all that is computed from it. ``finite`` says that there is a mask
    of a finite number, which need not hide them: -inf does.
    """

    where: str
    user_share: float
    movable_flops: int
    finite: bool = False


def hoist(
    traced: Traced, sides: Mapping[fx.Node, NodeSide], folds: bool = True
) -> tuple[Traced, tuple[Hoisted, ...], tuple[Unmasked, ...]]:
    """Return the model with user columns hoisted if that pays, the hoisted products, and attentions without a mask.

    The input is unchanged. ``folds`` is that of ``Rewriter``.
    """
    rewriter = Rewriter(traced, sides, folds)
    fold_row_constants(rewriter)
    narrow_products(rewriter)
    known: dict[fx.Node, Provenance] = {}
    regions = Regions(rewriter, known, KnownValues(rewriter))
    done: list[Hoisted] = []
    coupled: list[Unmasked] = []
    shares: dict[fx.Node, Weighted] = {}
    crosses = Crosses(regions, FLOPS_PER_ELEMENT)
    for node in list(rewriter.graph.nodes):
        if node.op == "call_function" and node.users and rewriter.side_of(node) == "item":
            saved = crosses.visit(node)
            if saved is not None:
                done.append(Hoisted(location_of(node), saved, nbytes(node)))
                continue
            moved = unmerged(regions, node)
            for shown in simplified(regions, node) if moved is None else moved:
                pooled = weighted(regions, shown, shares)
                if pooled is not None:
                    done.append(Hoisted(location_of(shown), pooled.saved_flops, nbytes(shown)))
                else:
                    _visit(regions, shown, done, coupled)
    read_once(regions)
    if any(n.target in PRODUCTS for n in regions.known):
        narrow_positions(rewriter)
    return rewriter.finish(), tuple(done), tuple(coupled)


def _visit(regions: Regions, node: fx.Node, done: list[Hoisted], coupled: list[Unmasked]) -> None:
    """Note the segments of a node, and rewrite it if its user part can be computed apart."""
    rewriter, known = regions.rewriter, regions.known
    if node.target in (aten.linear.default, aten.matmul.default) and _split_product(rewriter, node, known, done):
        return
    if is_data_product(node):
        separate = data_product(regions, node)
        if separate is not None and separate.apart:
            done.append(Hoisted(location_of(node), separate.saved_flops, separate.state_bytes))
        elif separate is not None:
            later = sum(flops(n) for n in descendants(node))
            movable = separate.saved_flops + int(separate.share * later)
            coupled.append(Unmasked(location_of(node), separate.share, movable, separate.finite))
        if not node.users:
            rewriter.graph.erase_node(node)  # attention counts as random, hence not as dead code
        return
    if node.target in (aten.sum.dim_IntList, aten.mean.dim) and _split_sum(rewriter, node, known):
        return
    norm = node.target in (aten.rms_norm.default, aten.layer_norm.default)
    found = _norm(rewriter, node, known) if norm else provenance_of(rewriter, node, known)
    if found is None and not norm:
        found = in_order(regions, node) or separated(regions, node)
    if found is not None:
        known[node] = found


def _split_product(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Provenance], done: list[Hoisted]) -> bool:
    """Split a product of data and a constant by the data's segments; return whether it is one."""
    left, right = node.args[0], node.args[1]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    swapped = left not in known
    data, constant = (right, left) if swapped else (left, right)
    found, weight = known.get(data), rewriter.value(constant)
    if found is not None and found.plain and weight is not None and weight.dim() == 1 and not swapped:
        if found.axis < data.meta["val"].dim() - 1:
            parts = [rewriter.call(node, node.target, s, constant) for s in found.segments]
            known[node] = Provenance(found.axis, tuple(parts))
        return True
    if found is None or weight is None or weight.dim() < 2:
        return weight is not None
    # The contracted axes of the data and of the weight.
    linear = node.target is aten.linear.default
    rank = data.meta["val"].dim()
    if rank < 2:
        return True
    contracted = rank - 2 if swapped else rank - 1
    weight_axis = weight.dim() - (1 if linear or swapped else 2)
    product = _Product(rewriter, node, constant, weight, swapped, linear)
    if found.axis == contracted:
        product.split_columns(found, weight_axis, done)
    elif found.plain:
        known.update(product.split_rows(found, rank, done))
    return True


def _split_sum(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Provenance]) -> bool:
    """Replace a sum or mean over the segments' axis by the sum of the segments' sums; return whether it was one."""
    source, dims = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    found = known.get(source)
    if found is None or not found.plain or not isinstance(dims, (list, tuple)) or node.kwargs:
        return False
    rank = source.meta["val"].dim()
    axes = [int(d) % rank for d in dims]  # type: ignore[arg-type]  # ints
    user = sum(numel(s.meta["val"]) for s in found.segments if is_user(rewriter, s))
    # Per candidate, the user's partial sum is read and added instead of the user's values.
    if found.axis not in axes or user < 2 * numel(node.meta["val"]):
        return False
    sums = [rewriter.call(node, aten.sum.dim_IntList, s, axes, *node.args[2:]) for s in found.segments]
    total = _total(rewriter, node, sums)
    if node.target is aten.mean.dim:
        count = numel(source.meta["val"]) // numel(node.meta["val"])
        total = rewriter.call(node, aten.div.Tensor, total, count)
    rewriter.replace(node, total)
    return True


@dataclass(frozen=True)
class _Product:
    """A product of data and a constant: ``linear(x, W, b)``, ``matmul(x, W)`` or, swapped, ``matmul(W, x)``."""

    rewriter: Rewriter
    node: fx.Node
    constant: fx.Node
    weight: Tensor
    swapped: bool
    linear: bool

    def multiply(self, data: fx.Node, weight: fx.Node) -> fx.Node:
        if self.linear:
            return self.rewriter.call(self.node, aten.linear.default, data, weight)
        pair = (weight, data) if self.swapped else (data, weight)
        return self.rewriter.call(self.node, aten.matmul.default, *pair)

    def split_columns(self, found: Provenance, weight_axis: int, done: list[Hoisted]) -> None:
        """Replace ``x W`` by the sum of the products of its user and item columns, if that pays."""
        call, node = self.rewriter.call, self.node
        sizes = found.sizes()
        user_width = sum(size for size, s in zip(sizes, found.segments, strict=True) if is_user(self.rewriter, s))
        saved = gemm_flops(node) * user_width // sum(sizes)
        if saved <= FLOPS_PER_ELEMENT * numel(node.meta["val"]):
            return
        sums = []
        for side in ("user", "item"):
            chosen = [i for i, s in enumerate(found.segments) if is_user(self.rewriter, s) == (side == "user")]
            segments = [found.segments[i] for i in chosen]
            joined = segments[0] if len(segments) == 1 else call(node, aten.cat.default, segments, found.axis)
            columns = _columns(self.weight, weight_axis, sizes, chosen)
            sums.append(self.multiply(joined, self._slice(side, columns)))
        total = call(node, aten.add.Tensor, sums[1], sums[0])
        for scalar, vector in found.rank_one:
            row = self._times(vector)
            total = call(node, aten.add.Tensor, total, call(node, aten.mul.Tensor, scalar, self._slice("rank", row)))
        if found.scale is not None:
            total = call(node, aten.mul.Tensor, total, found.scale)
        if found.shift is not None:
            total = call(node, aten.add.Tensor, total, self._slice("shift", self._times(found.shift)))
        if self.linear and len(node.args) > 2 and node.args[2] is not None:
            total = call(node, aten.add.Tensor, total, node.args[2])
        self.rewriter.replace(node, total)
        done.append(Hoisted(location_of(node), saved, nbytes(node)))

    def split_rows(self, found: Provenance, rank: int, done: list[Hoisted]) -> dict[fx.Node, Provenance]:
        """Replace f([U; G]) by [f(U); f(G)] along a free axis if that pays; return the result's provenance."""
        call, node = self.rewriter.call, self.node
        out_rank = node.meta["val"].dim()
        axis = found.axis + out_rank - rank
        # A weight with the segments' axis (one matrix per feature token) is sliced with them.
        weight_axis = axis - (out_rank - self.weight.dim())
        per_segment = (
            not self.linear and 0 <= weight_axis < self.weight.dim() - 2 and self.weight.shape[weight_axis] > 1
        )
        users = [s for s in found.segments if is_user(self.rewriter, s)]
        share = sum(numel(s.meta["val"]) for s in users) / sum(numel(s.meta["val"]) for s in found.segments)
        saved, kept = int(gemm_flops(node) * share), int(nbytes(node) * share)
        sizes, results = found.sizes(), []
        for index, segment in enumerate(found.segments):
            weight = self.constant
            if per_segment:
                weight = self._slice(f"part{index}", _columns(self.weight, weight_axis, sizes, [index]))
            result = self.multiply(segment, weight)
            if self.linear and len(node.args) > 2 and node.args[2] is not None:
                result = call(node, aten.add.Tensor, result, node.args[2])
            results.append(result)
        # A product that saves less than moving its result costs is left whole, unless a later one reads its parts.
        if saved <= FLOPS_PER_ELEMENT * numel(node.meta["val"]) * share:
            return {node: Provenance(axis, tuple(results))}
        whole = call(node, aten.cat.default, results, axis)
        self.rewriter.replace(node, whole)
        done.append(Hoisted(location_of(node), saved, kept))
        return {whole: Provenance(axis, tuple(results))}

    def _slice(self, label: str, tensor: Tensor) -> fx.Node:
        return self.rewriter.constant(f"{self.rewriter.name(self.constant)}.{label}", tensor)

    def _times(self, vector: Tensor) -> Tensor:
        """Return a constant vector over the contracted axis times the weight, computed in double precision."""
        weight = self.weight.double()
        result = vector.double() @ (weight.transpose(-1, -2) if self.linear else weight)
        # One matrix per feature token gives one vector per feature token, [T, 1, M].
        return (result if weight.dim() == 2 else result.unsqueeze(-2)).to(self.weight.dtype)


def _columns(weight: Tensor, axis: int, sizes: list[int], chosen: list[int]) -> Tensor:
    """Return the columns of a weight that belong to the chosen segments; a view if there is only one."""
    starts = [sum(sizes[:i]) for i in chosen]
    if len(chosen) == 1:
        return weight.narrow(axis, starts[0], sizes[chosen[0]])
    return torch.cat([weight.narrow(axis, s, sizes[i]) for s, i in zip(starts, chosen, strict=True)], axis)


def _norm(rewriter: Rewriter, node: fx.Node, known: dict[fx.Node, Provenance]) -> Provenance | None:
    """Follow segments through a norm: along its axis as scaled segments, across it one by one."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    found = known.get(source)
    shape, rank = node.args[1], source.meta["val"].dim()
    assert isinstance(shape, (list, tuple))
    if found is None or not found.plain:
        return None
    if found.axis < rank - len(shape):
        segments = [rewriter.call(node, node.target, s, *node.args[1:], **node.kwargs) for s in found.segments]
        return Provenance(found.axis, tuple(segments))
    if len(shape) != 1 or source.meta["val"].dtype not in (torch.float32, torch.float64):
        return None  # float16 norms accumulate in float32
    gain = rewriter.value(node.args[2]) if len(node.args) > 2 else None
    if node.target is aten.rms_norm.default:
        eps = node.args[3] if len(node.args) > 3 else None
        smallest = torch.finfo(source.meta["val"].dtype).eps
        return _rms_norm(rewriter, node, found, gain, eps if isinstance(eps, float) else smallest)
    shift = rewriter.value(node.args[3]) if len(node.args) > 3 else None
    eps = node.args[4] if len(node.args) > 4 else 1e-5
    assert isinstance(eps, float)
    return _layer_norm(rewriter, node, found, gain, shift, eps)


def _rms_norm(rewriter: Rewriter, node: fx.Node, found: Provenance, gain: Tensor | None, eps: float) -> Provenance:
    call = rewriter.call
    squares = [
        call(node, aten.sum.dim_IntList, call(node, aten.mul.Tensor, s, s), [-1], True) for s in found.segments
    ]
    mean = call(node, aten.div.Tensor, _total(rewriter, node, squares), sum(found.sizes()))
    scale = call(node, aten.rsqrt.default, call(node, aten.add.Scalar, mean, eps))
    return Provenance(found.axis, _gained(rewriter, node, found, list(found.segments), gain), scale)


def _layer_norm(
    rewriter: Rewriter, node: fx.Node, found: Provenance, gain: Tensor | None, shift: Tensor | None, eps: float
) -> Provenance | None:
    if len(found.segments) != 2:
        return None  # the pairwise sums are stated for two segments
    call, width = rewriter.call, sum(found.sizes())
    means = [call(node, aten.mean.dim, s, [-1], True) for s in found.segments]
    centred = [call(node, aten.sub.Tensor, s, m) for s, m in zip(found.segments, means, strict=True)]
    squares = [call(node, aten.sum.dim_IntList, call(node, aten.mul.Tensor, c, c), [-1], True) for c in centred]
    a, b = found.sizes()
    apart = call(node, aten.sub.Tensor, means[1], means[0])  # d: second segment minus first
    between = call(node, aten.mul.Scalar, call(node, aten.mul.Tensor, apart, apart), a * b / width)
    variance = call(
        node, aten.div.Tensor, call(node, aten.add.Tensor, _total(rewriter, node, squares), between), width
    )
    scale = call(node, aten.rsqrt.default, call(node, aten.add.Scalar, variance, eps))
    weight = torch.ones(width, dtype=node.meta["val"].dtype) if gain is None else gain
    direction = torch.cat([-weight[:a].double() * b, weight[a:].double() * a]) / width
    segments = _gained(rewriter, node, found, centred, gain)
    return Provenance(found.axis, segments, scale, ((apart, direction),), shift)


def _total(rewriter: Rewriter, node: fx.Node, terms: list[fx.Node]) -> fx.Node:
    """Add row sums, the user's first, so that their total comes from the user graph."""
    ordered = sorted(terms, key=lambda t: not is_user(rewriter, t))
    total = ordered[0]
    for term in ordered[1:]:
        total = rewriter.call(node, aten.add.Tensor, total, term)
    return total


def _gained(
    rewriter: Rewriter, node: fx.Node, found: Provenance, segments: list[fx.Node], gain: Tensor | None
) -> tuple[fx.Node, ...]:
    if gain is None:
        return tuple(segments)
    source = node.args[2]
    assert isinstance(source, fx.Node)
    sizes, made = found.sizes(), []
    for index, segment in enumerate(segments):
        side = "user" if is_user(rewriter, segment) else "item"
        constant = rewriter.constant(f"{rewriter.name(source)}.{side}", _columns(gain, 0, sizes, [index]))
        made.append(rewriter.call(node, aten.mul.Tensor, segment, constant))
    return tuple(made)
