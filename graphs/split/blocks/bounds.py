"""Arithmetic of bounds: from those of an op's operands to those of its result, for every finite input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

__all__ = ["BOUNDED", "MONOTONE", "Known", "applied", "between", "everything", "exact"]


@dataclass(frozen=True)
class Known:
    """Bounds of a tensor's elements, of its dtype: ``low <= element <= high`` for every finite input.

    Both have the tensor's rank; axes along which they do not vary, the batch among them, have size 1.
    """

    low: Tensor
    high: Tensor

    @property
    def known(self) -> Tensor:
        """Which elements have the same value, ``low``, for every input."""
        return self.low == self.high


def exact(value: Tensor) -> Known:
    """Return the bounds of a constant."""
    return Known(value, value)


def between(low: float, high: float, like: Tensor) -> Known:
    """Return the same bounds for all elements of a tensor."""
    shape = [1] * like.dim()
    return Known(torch.full(shape, low, dtype=like.dtype), torch.full(shape, high, dtype=like.dtype))


def everything(like: Tensor, rank: int) -> Known:
    """Return the bounds of a tensor of ``rank`` axes of which nothing is known but that it is finite."""
    dtype = like.dtype
    if dtype is torch.bool:
        ends: tuple[Any, Any] = (False, True)
    elif dtype.is_complex:
        ends = (float("-inf"), float("inf"))
    else:
        limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        ends = (limits.min, limits.max)
    low, high = (torch.full([1] * rank, end, dtype=dtype) for end in ends)
    return Known(low, high)


def applied(work: Callable[[Tensor], Tensor], known: Known) -> Known:
    """Return the bounds of a tensor whose elements are moved."""
    return Known(work(known.low), work(known.high))


def _known(value: object) -> Known:
    return value if isinstance(value, Known) else exact(torch.as_tensor(value))


def _sum(dtype: torch.dtype, a: Known, b: Known, sign: float) -> Known:
    first, second = (b.low, b.high) if sign >= 0 else (b.high, b.low)

    def end(x: Tensor, y: Tensor, unsure: float) -> Tensor:
        total = x.double() + y.double() * sign
        # Finite inputs have finite sums. An infinity of a mask, which is one of a bound, stays.
        largest = torch.finfo(torch.float64).max
        finite = x.isfinite() & y.isfinite()
        total = torch.where(finite, total.clamp(-largest, largest), total)
        return _within(torch.where(total.isnan(), unsure, total), dtype)

    return Known(end(a.low, first, -torch.inf), end(a.high, second, torch.inf))


def _within(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a bound to the tensor's dtype, which rounds its elements the same way."""
    if dtype.is_floating_point:
        limits = torch.finfo(dtype)
        return torch.where(bound.isinf(), bound, bound.clamp(limits.min, limits.max)).to(dtype)
    return bound.to(dtype)


def _add(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    if not dtype.is_floating_point:
        return None
    alpha = arguments[2] if len(arguments) > 2 else options.get("alpha", 1)
    return _sum(dtype, _known(arguments[0]), _known(arguments[1]), alpha)


def _sub(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    if not dtype.is_floating_point:
        return None
    alpha = arguments[2] if len(arguments) > 2 else options.get("alpha", 1)
    return _sum(dtype, _known(arguments[0]), _known(arguments[1]), -alpha)


def _reversed(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    return _sub(dtype, [arguments[1], arguments[0], *arguments[2:]], options)


def _mul(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    a, b = _known(arguments[0]), _known(arguments[1])
    if dtype is torch.bool:
        return Known(a.low & b.low, a.high & b.high)
    if not dtype.is_floating_point:
        return _zero(dtype, a, b)
    ends = [x.double() * y.double() for x in (a.low, a.high) for y in (b.low, b.high)]
    # Bounds are no values: an infinite one of a finite element times 0 is 0.
    return _hull(dtype, [torch.where(e.isnan(), 0.0, e) for e in ends])


def _zero(dtype: torch.dtype, a: Known, b: Known) -> Known:
    zero = (a.known & (a.low == 0)) | (b.known & (b.low == 0))
    rest = everything(torch.empty(0, dtype=dtype), zero.dim())
    return Known(rest.low.masked_fill(zero, 0), rest.high.masked_fill(zero, 0))


def _div(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    a, b = _known(arguments[0]), _known(arguments[1])
    if not dtype.is_floating_point or options.get("rounding_mode") is not None:
        return None
    ends = [x.double() / y.double() for x in (a.low, a.high) for y in (b.low, b.high)]
    apart = (b.low > 0) | (b.high < 0)
    zero = a.known & (a.low == 0)
    largest = torch.finfo(dtype).max
    low, high = _extremes(ends)
    low, high = (torch.where(apart, t, end) for t, end in ((low, -largest), (high, largest)))
    return Known(*(_within(torch.where(zero, 0.0, t.double()), dtype) for t in (low, high)))


def _extremes(ends: list[Tensor]) -> tuple[Tensor, Tensor]:
    low, high = ends[0], ends[0]
    for end in ends[1:]:
        low, high = torch.minimum(low, end), torch.maximum(high, end)
    return low, high


def _hull(dtype: torch.dtype, ends: list[Tensor]) -> Known:
    low, high = _extremes(ends)
    return Known(_within(low, dtype), _within(high, dtype))


def _neg(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    (a,) = arguments
    return Known(-a.high, -a.low) if dtype.is_floating_point else None


def _cast(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    source = _known(arguments[0])
    if dtype is torch.bool:
        return Known((source.low > 0) | (source.high < 0), ~(source.known & (source.low == 0)))
    if dtype.is_floating_point or source.low.dtype is torch.bool:
        return applied(lambda t: t.to(dtype), source)
    return None


def _and(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    a, b = _known(arguments[0]), _known(arguments[1])
    return Known(a.low & b.low, a.high & b.high) if a.low.dtype is b.low.dtype is torch.bool else None


def _or(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    a, b = _known(arguments[0]), _known(arguments[1])
    return Known(a.low | b.low, a.high | b.high) if a.low.dtype is b.low.dtype is torch.bool else None


def _not(dtype: torch.dtype, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    (a,) = arguments
    return Known(~a.high, ~a.low) if a.low.dtype is torch.bool else None


Rule = Callable[[torch.dtype, list[Any], dict[str, Any]], Known | None]

#: Ops whose bounds come from a rule.
BOUNDED: dict[Any, Rule] = {
    aten.add.Tensor: _add, aten.add.Scalar: _add, aten.sub.Tensor: _sub, aten.sub.Scalar: _sub,
    aten.rsub.Scalar: _reversed, aten.rsub.Tensor: _reversed,
    aten.mul.Tensor: _mul, aten.mul.Scalar: _mul, aten.div.Tensor: _div, aten.div.Scalar: _div,
    aten.neg.default: _neg, aten._to_copy.default: _cast, aten.to.dtype: _cast,
    aten.bitwise_and.Tensor: _and, aten.logical_and.default: _and, aten.bitwise_or.Tensor: _or,
    aten.logical_or.default: _or, aten.bitwise_not.default: _not, aten.logical_not.default: _not,
}  # fmt: skip
#: Ops that never fall when an operand rises.
MONOTONE = (
    aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.clamp_min.default, aten.clamp_max.default,
    aten.minimum.default, aten.maximum.default,
)  # fmt: skip
