"""Float ops whose exported form overflows or rounds where PyTorch's does not.

The exporter writes `x % y` as `x - floor(x / y) * y`. If the quotient rounds up to a whole number, as that of
1.0 // 0.1 does, the bucket is another one; if it is large, as days of a time in seconds, little is left of the
remainder. Sums of exponentials overflow from 88 on, and their logarithms are -inf below -104.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["FLOAT_FORMS", "log_add_exp"]

aten = torch.ops.aten
Number = Tensor | float


def log_add_exp(left: Tensor, right: Tensor) -> Tensor:
    """Return log(e^left + e^right), from the larger one: infinities stay."""
    high, low = torch.maximum(left, right), torch.minimum(left, right)
    apart = (low - high).masked_fill(high.abs() == math.inf, -math.inf)
    return high + apart.exp().log1p()


def _log_add_exp2(left: Tensor, right: Tensor) -> Tensor:
    base = math.log(2)
    return log_add_exp(left * base, right * base) / base


def _log_sigmoid(values: Tensor) -> Tensor:
    softplus: Tensor = aten.softplus(-values)
    return -softplus


def _operands(dividend: Number, divisor: Number) -> tuple[Tensor, Tensor]:
    """Return both as tensors of the type that the result has."""
    dtype = torch.result_type(dividend, divisor)
    like = dividend if isinstance(dividend, Tensor) else divisor
    assert isinstance(like, Tensor)
    a, b = (
        t.to(dtype) if isinstance(t, Tensor) else torch.full_like(like, t, dtype=dtype) for t in (dividend, divisor)
    )
    return a, b


def _other_way(rest: Tensor, divisor: Tensor) -> Tensor:
    """Return where a remainder that has the dividend's sign has not the divisor's."""
    return (rest != 0) & ((rest < 0) != (divisor < 0))


def _remainder(dividend: Number, divisor: Number) -> Tensor:
    """Return the remainder with the divisor's sign, as PyTorch does from C's exact ``fmod``."""
    a, b = _operands(dividend, divisor)
    rest = torch.fmod(a, b)
    return torch.where(_other_way(rest, b), rest + b, rest)


def _floored(dividend: Number, divisor: Number) -> Tensor:
    """Divide, rounding down, as PyTorch does: what the remainder leaves is divided."""
    a, b = _operands(dividend, divisor)
    rest = torch.fmod(a, b)
    quotient = (a - rest) / b
    quotient = torch.where(_other_way(rest, b), quotient - 1, quotient)
    floor = quotient.floor()
    floor = torch.where(quotient - floor > 0.5, floor + 1, floor)
    return torch.where(b == 0, a / b, floor)


def _divided(dividend: Number, divisor: Number, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode == "floor":
        return _floored(dividend, divisor)
    a, b = _operands(dividend, divisor)
    return (a / b).trunc() if rounding_mode == "trunc" else a / b


#: What computes each op on floats.
FLOAT_FORMS: dict[Any, Callable[..., Any]] = {
    aten.floor_divide.default: _floored,
    aten.floor_divide.Scalar: _floored,
    aten.div.Tensor_mode: _divided,
    aten.div.Scalar_mode: _divided,
    aten.remainder.Scalar: _remainder,
    aten.remainder.Tensor: _remainder,
    aten.remainder.Scalar_Tensor: _remainder,
    aten.logaddexp.default: log_add_exp,
    aten.logaddexp2.default: _log_add_exp2,
    aten.log_sigmoid.default: _log_sigmoid,
}
