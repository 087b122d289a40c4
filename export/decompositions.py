"""Decompositions of ops that the ONNX exporter or ONNX Runtime compute otherwise than PyTorch does.

Integers: hashed ids use all 64 bits, of which float32 holds 24 and float64 53; through floats a quotient-remainder
embedding looks up other rows. Attention: PyTorch gives a query without keys the value 0, a plain softmax NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["decomposition"]

aten = torch.ops.aten
Number = Tensor | int


def decomposition(node: fx.Node) -> Callable[..., Any] | None:
    """Return a function that computes a node as PyTorch does, or None if its op can be exported as it is."""
    if node.target is aten.scaled_dot_product_attention.default:
        return _attention
    result = node.meta.get("val")
    whole = isinstance(result, Tensor) and not result.dtype.is_floating_point and result.dtype != torch.bool
    return _INTEGER.get(node.target) if whole else None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend as the math kernel of ``scaled_dot_product_attention`` does, dropout aside.

    Args:
        query: [..., L, E], heads before the sequence.
        key: [..., S, E].
        value: [..., S, V].
        mask: bool (True: attend) or float (added), broadcast to [..., L, S].
        dropout: ignored; a model that serves drops nothing.
        is_causal: whether a query attends only to keys up to its own position.
        scale: of the products; 1 / sqrt(E) by default.
        enable_gqa: whether groups of query heads share a key head.
    """
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    if is_causal:
        mask = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)  # [..., L, S]
    if mask is None:
        return torch.softmax(scores, -1) @ value
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    if not is_causal:  # every causal query has a key, its own
        weights = weights.masked_fill(scores.amax(-1, keepdim=True) == -math.inf, 0.0)
    return weights @ value


def _divide(dividend: Tensor, divisor: Number, *, rounding_mode: str | None = None) -> Tensor:
    """Divide with a rounding mode; the exporter casts to float32."""
    return _truncated(dividend, divisor) if rounding_mode == "trunc" else aten.floor_divide(dividend, divisor)


def _fmod(dividend: Tensor, divisor: Number) -> Tensor:
    """Return the remainder with the sign of the dividend; ONNX Runtime's Mod with fmod=1 uses floats."""
    return dividend - _truncated(dividend, divisor) * divisor


def _truncated(dividend: Tensor, divisor: Number) -> Tensor:
    floored = aten.floor_divide(dividend, divisor)
    inexact = dividend - floored * divisor != 0
    return torch.where(inexact & (floored < 0), floored + 1, floored)


def _sum(values: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Sum over axes; ONNX Runtime's ReduceSum of int64 uses floats, its CumSum does not."""
    total = values.to(dtype or torch.int64)
    axes = sorted((d % values.dim() for d in dims or range(values.dim())), reverse=True)
    for axis in axes:
        total = torch.cumsum(total, axis).narrow(axis, total.shape[axis] - 1, 1)
        total = total if keepdim else total.squeeze(axis)
    return total


_INTEGER: dict[Any, Callable[..., Any]] = {
    aten.div.Tensor_mode: _divide,
    aten.div.Scalar_mode: _divide,
    aten.fmod.Tensor: _fmod,
    aten.fmod.Scalar: _fmod,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
}
