"""Integer ops whose form in ONNX, or whose kernel in ONNX Runtime, computes otherwise than PyTorch does.

Hashed ids use all 64 bits, of which float32 holds 24 and float64 53; through floats a quotient-remainder embedding
looks up other rows. A division by 0, which PyTorch refuses, is one by 1: a runtime fails for all rows of a call, or
ends its process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["DIVISIONS", "INTEGER"]

aten = torch.ops.aten
Number = Tensor | int


def _divide(dividend: Tensor, divisor: Number, *, rounding_mode: str | None = None) -> Tensor:
    """Divide with a rounding mode; the exporter casts to float32."""
    return _truncated(dividend, divisor) if rounding_mode == "trunc" else _floored(dividend, divisor)


def _floored(dividend: Number, divisor: Number) -> Tensor:
    """Divide, rounding down; ONNX Runtime's process ends (SIGFPE) when it divides the least integer by -1."""
    if isinstance(divisor, int):
        quotient: Tensor = -torch.as_tensor(dividend) if divisor == -1 else aten.floor_divide(dividend, divisor)
        return quotient
    dividend = torch.full_like(divisor, dividend) if isinstance(dividend, int) else dividend
    safe: Tensor = aten.floor_divide(dividend, _without_edges(divisor))
    return torch.where(divisor == -1, -dividend, safe) if divisor.dtype.is_signed else safe


def _without_edges(divisor: Tensor) -> Tensor:
    """Return a divisor with 1 in the place of 0 and -1, by which processes end."""
    edges = divisor == 0
    return divisor.masked_fill(edges | (divisor == -1) if divisor.dtype.is_signed else edges, 1)


def _remainder(dividend: Number, divisor: Number) -> Tensor:
    """Return the remainder with the sign of the divisor: 0 for -1, by which ONNX Runtime ends as in a division."""
    divisor = (1 if divisor == -1 else divisor) if isinstance(divisor, int) else _without_edges(divisor)
    rest: Tensor = aten.remainder(dividend, divisor)
    return rest


def _fmod(dividend: Tensor, divisor: Number) -> Tensor:
    """Return the remainder with the sign of the dividend; ONNX Runtime's Mod with fmod=1 uses floats."""
    divisor = _without_zero(divisor)
    return dividend - _truncated(dividend, divisor) * divisor


def _without_zero(divisor: Number) -> Number:
    return divisor if isinstance(divisor, int) else divisor.masked_fill(divisor == 0, 1)


def _truncated(dividend: Tensor, divisor: Number) -> Tensor:
    divisor = _without_zero(divisor)
    floored = _floored(dividend, divisor)
    inexact = dividend - floored * divisor != 0
    return torch.where(inexact & (floored < 0), floored + 1, floored)


def _sum(values: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Sum over axes; ONNX Runtime's ReduceSum of int64 uses floats, its CumSum does not."""
    total = values.to(dtype or torch.int64)
    axes = sorted((d % values.dim() for d in dims or range(values.dim())), reverse=True)
    for axis in axes:
        if total.shape[axis] == 0:  # has no last element
            total = aten.sum.dim_IntList(total, [axis], keepdim, dtype=total.dtype)
            continue
        total = torch.cumsum(total, axis, dtype=total.dtype).narrow(axis, total.shape[axis] - 1, 1)
        total = total if keepdim else total.squeeze(axis)
    return total


def _product(values: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Multiply along an axis; ONNX Runtime's ReduceProd of int64 uses floats."""
    columns = values.to(dtype or torch.int64).unbind(dim)
    if not columns:
        return _sum(values, [dim], keepdim, dtype=dtype) + 1
    total = columns[0]
    for column in columns[1:]:
        total = total * column
    return total.unsqueeze(dim) if keepdim else total


def _cumulative_product(values: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Multiply up to each position of an axis; ONNX has no such op."""
    columns = list(values.to(dtype or torch.int64).unbind(dim))
    if not columns:
        return values.to(dtype or torch.int64)
    for position in range(1, len(columns)):
        columns[position] = columns[position - 1] * columns[position]
    return torch.stack(columns, dim)


def _power(base: Number, exponent: Number) -> Tensor:
    """Raise to a power by squaring; ONNX Runtime's Pow of int64 uses float64."""
    if isinstance(exponent, int):
        base = torch.as_tensor(base)
        total = torch.ones_like(base)
        for bit in range(exponent.bit_length()):
            total = total * base if exponent >> bit & 1 else total
            base = base * base
        return total
    base = torch.full_like(exponent, base) if isinstance(base, int) else base
    root = factor = base.to(torch.result_type(base, exponent))
    total = torch.ones_like(root)
    for bit in range(torch.iinfo(exponent.dtype).bits - 1):
        total = torch.where((exponent >> bit & 1) != 0, total * factor, total)
        factor = factor * factor
    # PyTorch truncates the inverse of an integer.
    sign = torch.where((exponent & 1) != 0, root, root * root)
    return torch.where(exponent < 0, sign.masked_fill((root != 1) & (root != -1), 0), total)


def _sign(values: Tensor) -> Tensor:
    """Return the sign; ONNX Runtime's Sign of int64 gives -1 for 2^31."""
    return (values > 0).to(values.dtype) - (values < 0).to(values.dtype)


def _maximum(a: Tensor, b: Number) -> Tensor:
    """Return the larger value, by a comparison.

    ONNX Runtime's Max, Min, Clip, ReduceMax and ReduceMin compare the lower halves of int64 as if they had signs, if
    the upper ones are equal: 2^31 is less than 0 for them.
    """
    return a.masked_fill(a < b, b) if isinstance(b, int) else torch.where(a > b, a, b)


def _minimum(a: Tensor, b: Number) -> Tensor:
    return a.masked_fill(a > b, b) if isinstance(b, int) else torch.where(a < b, a, b)


def _clamp(values: Tensor, low: Number | None = None, high: Number | None = None) -> Tensor:
    values = values if low is None else _maximum(values, low)
    return values if high is None else _minimum(values, high)


def _not_negative(values: Tensor) -> Tensor:
    """Return a ReLU of integers, for which ONNX Runtime has no kernel."""
    return _maximum(values, 0)


def _largest(values: Tensor, dims: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the largest values along axes, found by their positions."""
    return _extreme(aten.argmax, values, dims, keepdim)


def _least(values: Tensor, dims: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return _extreme(aten.argmin, values, dims, keepdim)


def _extreme(position_of: Callable[..., Tensor], values: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted((d % values.dim() for d in dims or range(values.dim())), reverse=True):
        values = values.gather(axis, position_of(values, axis, True))
        values = values if keepdim else values.squeeze(axis)
    return values


def _largest_and_position(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _largest(values, [dim], keepdim), aten.argmax(values, dim, keepdim)


def _least_and_position(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _least(values, [dim], keepdim), aten.argmin(values, dim, keepdim)


def _shift_left_by(values: Tensor, by: int) -> Tensor:
    """Shift by a number; the exporter shifts as uint64, which TensorRT cannot read. Beyond the width gives 0."""
    bits = torch.iinfo(values.dtype).bits
    if not 0 <= by < bits:
        return torch.zeros_like(values)
    top = torch.iinfo(values.dtype).min  # 2 to the last bit, as a number of the type
    return values * (top if by == bits - 1 and top < 0 else 1 << by)


def _shift_right_by(values: Tensor, by: int) -> Tensor:
    """Shift by a number, keeping the sign; beyond the width leaves only the sign."""
    info = torch.iinfo(values.dtype)
    if by < 0 or 1 << by > info.max:
        return -(values < 0).to(values.dtype)
    return aten.floor_divide(values, 1 << by)  # type: ignore[no-any-return]  # ops are untyped


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2 to an exponent of 0 to 63, modulo 2^64, from the bits of the exponent."""
    power = torch.ones_like(exponent)
    for bit in range(6):
        power = torch.where((exponent & (1 << bit)) != 0, power * (1 << (1 << bit)), power)
    return power


def _shift_left(values: Tensor, by: Tensor) -> Tensor:
    """Shift by a tensor, which the exporter cannot write; by less than 0 or more than 63 gives 0."""
    by = by.to(values.dtype)
    return (values * _power_of_two(by & 63)).masked_fill((by < 0) | (by > 63), 0)


def _shift_right(values: Tensor, by: Tensor) -> Tensor:
    """Shift by a tensor, keeping the sign; by less than 0 or more than 62 leaves only the sign."""
    by = by.to(values.dtype)
    far = (by < 0) | (by > 62)
    shifted = aten.floor_divide(values, _power_of_two(by.masked_fill(far, 0)))
    return torch.where(far, -(values < 0).to(values.dtype), shifted)


#: A divisor that is a number other than -1 is exported as it is.
DIVISIONS = {aten.floor_divide.default, aten.remainder.Scalar, aten.remainder.Tensor}

INTEGER: dict[Any, Callable[..., Any]] = {
    aten.floor_divide.default: _floored,
    aten.remainder.Scalar: _remainder,
    aten.remainder.Tensor: _remainder,
    aten.remainder.Scalar_Tensor: _remainder,
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    aten.pow.Scalar: _power,
    aten.prod.dim_int: _product,
    aten.cumprod.default: _cumulative_product,
    aten.sign.default: _sign,
    aten.maximum.default: _maximum,
    aten.minimum.default: _minimum,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: _maximum,
    aten.clamp_min.Tensor: _maximum,
    aten.clamp_max.default: _minimum,
    aten.clamp_max.Tensor: _minimum,
    aten.relu.default: _not_negative,
    aten.amax.default: _largest,
    aten.amin.default: _least,
    aten.max.dim: _largest_and_position,
    aten.min.dim: _least_and_position,
    aten.bitwise_left_shift.Tensor: _shift_left,
    aten.__lshift__.Tensor: _shift_left,
    aten.bitwise_left_shift.Tensor_Scalar: _shift_left_by,
    aten.__lshift__.Scalar: _shift_left_by,
    aten.bitwise_right_shift.Tensor_Scalar: _shift_right_by,
    aten.__rshift__.Scalar: _shift_right_by,
    aten.bitwise_right_shift.Tensor: _shift_right,
    aten.__rshift__.Tensor: _shift_right,
    aten.div.Tensor_mode: _divide,
    aten.div.Scalar_mode: _divide,
    aten.fmod.Tensor: _fmod,
    aten.fmod.Scalar: _fmod,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
}
