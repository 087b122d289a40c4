"""Decompositions of ops that the ONNX exporter or ONNX Runtime compute otherwise than PyTorch does.

Integers: hashed ids use all 64 bits, of which float32 holds 24 and float64 53; through floats a quotient-remainder
embedding looks up other rows. A division by 0, which PyTorch refuses, is one by 1: a runtime fails for all rows of a
call, or ends its process. Attention: PyTorch gives a query without keys the value 0, a plain softmax NaN. Others have
no ONNX form that is valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["decomposition", "exporter_differs"]

aten = torch.ops.aten
Number = Tensor | int


def decomposition(node: fx.Node) -> Callable[..., Any] | None:
    """Return a function that computes a node as PyTorch does, or None if its op can be exported as it is."""
    if node.target in _ALWAYS:
        return _ALWAYS[node.target]
    if node.target is aten.index.Tensor and _looks_up_rows(node):
        return _rows_of
    if node.target in _DIVISIONS and isinstance(node.args[1], int) and node.args[1] != -1:
        return None
    result = node.meta.get("val")
    result = result[0] if isinstance(result, (tuple, list)) and result else result  # values, and their positions
    whole = isinstance(result, Tensor) and not result.dtype.is_floating_point and result.dtype != torch.bool
    return _INTEGER.get(node.target) if whole else None


def exporter_differs(node: fx.Node) -> bool:
    """Return whether the exporter's own form of a node gives other values than PyTorch for some inputs."""
    if node.target is aten.scaled_dot_product_attention.default:
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        return mask is not None
    return node.target in _INTEGER and decomposition(node) is not None


def _looks_up_rows(node: fx.Node) -> bool:
    """Return whether an index picks rows of a matrix by a tensor of integers with two or more axes.

    The exporter takes an axis of the result for one of the matrix if the index is computed.
    """
    matrix, indices = node.args
    if not isinstance(matrix, fx.Node) or not isinstance(indices, (list, tuple)) or len(indices) != 1:
        return False
    values = indices[0].meta["val"] if isinstance(indices[0], fx.Node) else None
    whole = isinstance(values, Tensor) and values.dtype == torch.int64 and values.dim() > 1
    return whole and matrix.meta["val"].dim() == 2


def _rows_of(matrix: Tensor, indices: Sequence[Tensor]) -> Tensor:
    rows: Tensor = aten.embedding(matrix, indices[0])
    return rows


def _is_in(elements: Tensor, known: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Return whether each element [...] is one of ``known``; the exporter's form sorts, which ONNX cannot."""
    found = (elements.unsqueeze(-1) == known.reshape(-1)).any(-1)
    return ~found if invert else found


def _finite(
    values: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """Replace NaN and infinities; the decomposition of PyTorch makes tensors that do not belong to the graph."""
    if not values.dtype.is_floating_point:
        return values.clone()
    limits = torch.finfo(values.dtype)
    kept = values.masked_fill(values.isnan(), 0.0 if nan is None else nan)
    kept = kept.masked_fill(values == math.inf, limits.max if posinf is None else posinf)
    return kept.masked_fill(values == -math.inf, limits.min if neginf is None else neginf)


def _randomized_relu(
    values: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Tensor:
    """Return what RReLU computes outside of training: a leaky ReLU with the mean of its slopes."""
    activated: Tensor = aten.leaky_relu(values, (lower + upper) / 2)
    return activated


def _bag(
    table: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding: int | None = None,
) -> Tensor:
    """Reduce bags of one width as ``embedding_bag`` does; the exporter writes a loop that is not valid ONNX.

    Args:
        table: [V, D].
        indices: int64 [N * width].
        offsets: int64 [N]; the row rules have checked that they are multiples of the width.
        scale_grad_by_freq: of gradients only.
        mode: 0 sum, 1 mean, 2 maximum.
        sparse: of gradients only.
        weights: [N * width], of a sum.
        include_last_offset: never with bags of one width per row.
        padding: an index to leave out.
    """
    ids = indices.view(offsets.shape[0], -1)  # [N, width]
    rows: Tensor = aten.embedding(table, ids)  # [N, width, D]
    kept = torch.ones_like(ids, dtype=torch.bool) if padding is None or padding < 0 else ids != padding
    count = kept.to(table.dtype).sum(1, keepdim=True)  # [N, 1]
    if mode == 2:
        best = rows.masked_fill(~kept.unsqueeze(-1), -math.inf).amax(1)
        return best.masked_fill(count == 0, 0.0)
    if weights is not None:
        rows = rows * weights.view(offsets.shape[0], -1).unsqueeze(-1)
    total = rows.masked_fill(~kept.unsqueeze(-1), 0.0).sum(1)
    return total / count.clamp(min=1) if mode == 1 else total


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
_DIVISIONS = {aten.floor_divide.default, aten.remainder.Scalar, aten.remainder.Tensor}

_INTEGER: dict[Any, Callable[..., Any]] = {
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

_ALWAYS: dict[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.isin.Tensor_Tensor: _is_in,
    aten.nan_to_num.default: _finite,
    aten.rrelu.default: _randomized_relu,
    aten.embedding_bag.default: _bag,
    aten.embedding_bag.padding_idx: _bag,
}
