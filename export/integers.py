"""Decompositions of integer ops that the ONNX exporter, or ONNX Runtime, computes in floating point.

Hashed ids use all 64 bits, of which float32 holds 24 and float64 53: a quotient-remainder embedding would look up
other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["integer_decomposition"]

aten = torch.ops.aten
Number = Tensor | int


def integer_decomposition(node: fx.Node) -> Callable[..., Any] | None:
    """Return a function that computes an integer node exactly, or None if its op is exact as it is."""
    result = node.meta.get("val")
    whole = isinstance(result, Tensor) and not result.dtype.is_floating_point and result.dtype != torch.bool
    return _DECOMPOSITIONS.get(node.target) if whole else None


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


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.div.Tensor_mode: _divide,
    aten.div.Scalar_mode: _divide,
    aten.fmod.Tensor: _fmod,
    aten.fmod.Scalar: _fmod,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
}
