"""Decompositions of ops that no row rule knows, into ops that one does.

Most are PyTorch's own. Ours replace those that write into a tensor, that need kernels no runtime has, or that hide
what belongs to a row.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._ops import OpOverload

from graphs.rows.rules import has_rule
from graphs.trace.complex_numbers import has_real_form

__all__ = ["OWN", "decompositions", "is_plain"]

aten = torch.ops.aten


def is_plain(graph: fx.Graph) -> bool:
    """Return whether row rules cover all ops of a graph and none writes into a tensor."""
    called = [n.target for n in graph.nodes if n.op == "call_function"]
    neutral = (operator.getitem, aten._assert_tensor_metadata.default, aten.sym_size.int)
    calls = [t for t in called if t not in neutral]
    return all(isinstance(t, OpOverload) and has_rule(t) and not t._schema.is_mutable for t in calls)


def decompositions(graph: fx.Graph) -> dict[OpOverload, Callable[..., Any]]:
    """Return decompositions of the ops of a graph without a row rule, such as tensordot; others stay whole."""
    used = {n.target for n in graph.nodes if isinstance(n.target, OpOverload)}
    composite = torch.export.default_decompositions()
    found: dict[OpOverload, Callable[..., Any]] = {}
    for op in sorted(used, key=str):
        draws = torch.Tag.nondeterministic_seeded in op.tags  # refused by its own name
        if has_rule(op) or has_real_form(op) or op.namespace != "aten" or draws:
            continue
        for table in (OWN, composite, decomposition_table):
            if op in table:
                found[op] = table[op]
                break
    return found


def _bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left [..., I], right [..., J] and weight [O, I, J] multiplied to [..., O], plus the bias."""
    out, _, inner = weight.shape
    by_left = left @ weight.transpose(0, 1).reshape(left.shape[-1], out * inner)  # [..., O * J]
    product: Tensor = (by_left.reshape(*left.shape[:-1], out, inner) * right.unsqueeze(-2)).sum(-1)
    return product if bias is None else product + bias


def _distances(left: Tensor, right: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Return the p-norms of left [..., P, D] minus right [..., R, D], for all pairs [..., P, R]."""
    apart = (left.unsqueeze(-2) - right.unsqueeze(-3)).abs()
    if p == 0:
        return (apart != 0).to(left.dtype).sum(-1)
    if p == math.inf:
        return apart.amax(-1)
    if p == 1:
        return apart.sum(-1)
    return (apart * apart).sum(-1).sqrt() if p == 2 else (apart**p).sum(-1) ** (1 / p)


def _searched(
    sequence: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Count the elements of a sorted sequence [..., K] before each value [..., V]; NaN is after all."""
    if sorter is not None:
        sequence = sequence.gather(-1, sorter)
    after_equal = right or side == "right"
    ahead, each = sequence.unsqueeze(-2), values.unsqueeze(-1)
    after = ahead > each if after_equal else ahead >= each
    return (~after).to(torch.int32 if out_int32 else torch.int64).sum(-1, dtype=_whole(out_int32))


def _searched_number(sequence: Tensor, value: float, **options: Any) -> Tensor:
    return _searched(sequence, torch.full_like(sequence[..., :1], value), **options).squeeze(-1)


def _whole(short: bool) -> torch.dtype:
    return torch.int32 if short else torch.int64


def _everywhere(like: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return an index [K] along ``dim`` as one for every element of ``like``, which has K there."""
    axes = [1] * like.dim()
    axes[dim] = index.shape[0]
    return index.view(axes).expand_as(like)


def _index_add(target: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    return target.scatter_add(dim, _everywhere(source, dim, index), source if alpha == 1 else source * alpha)


def _index_copy(target: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return target.scatter(dim, _everywhere(source, dim, index), source)


def _index_fill(target: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """Write a value at the positions ``index`` [K] of ``dim``: where any of them is the position."""
    size = target.shape[dim]
    hit = (torch.arange(size, device=index.device).unsqueeze(-1) == index % size).any(-1)
    axes = [1] * target.dim()
    axes[dim] = size
    return torch.where(hit.view(axes), value, target)


def _diagonal(values: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Return a diagonal as the last axis."""
    moved = values.movedim((dim1, dim2), (-2, -1))
    rows, columns = moved.shape[-2:]
    start = (max(-offset, 0), max(offset, 0))
    length = min(rows - start[0], columns - start[1])
    along = torch.arange(length, device=values.device)
    flat = (along + start[0]) * columns + along + start[1]
    return moved.flatten(-2).index_select(-1, flat)


OWN: dict[OpOverload, Callable[..., Any]] = {
    aten.bilinear.default: _bilinear,
    aten.cdist.default: _distances,
    aten._cdist_forward.default: _distances,
    aten.searchsorted.Tensor: _searched,
    aten.searchsorted.Scalar: _searched_number,
    aten.index_add.default: _index_add,
    aten.index_copy.default: _index_copy,
    aten.index_fill.int_Scalar: _index_fill,
    aten.index_fill.int_Tensor: _index_fill,
    aten.diagonal.default: _diagonal,
}
