"""Ops along an axis that ONNX has no form for, or whose exported form loses small terms beside large ones.

Values are PyTorch's, ties and NaN included. PyTorch does not define which of several equal elements `kthvalue`,
`median` and `mode` point at, so that only their values are computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from export.decompositions.float_forms import log_add_exp
from graphs.base.errors import UgsepError

__all__ = ["ALONG_AXIS"]

aten = torch.ops.aten
Join = Callable[[list[Tensor], list[Tensor]], list[Tensor]]


def _bucketize(values: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Count the boundaries [K], sorted, before each value [...]; NaN is after all."""
    each = values.unsqueeze(-1)
    after = boundaries > each if right else boundaries >= each
    return (~after).to(torch.int32 if out_int32 else torch.int64).sum(-1, dtype=_whole(out_int32))


def _whole(short: bool) -> torch.dtype:
    return torch.int32 if short else torch.int64


def _scanned(parts: list[Tensor], dim: int, joined: Join) -> list[Tensor]:
    """Join each position with all before it, twice as many per step: log2 of the length steps.

    Raises:
        UgsepError: the length of the axis is not known.
    """
    size = parts[0].shape[dim]
    if isinstance(size, torch.SymInt):
        raise UgsepError("an op accumulates along a history of any length; make graphs for one length")
    step = 1
    while step < size:
        earlier = [p.narrow(dim, 0, size - step) for p in parts]
        later = [p.narrow(dim, step, size - step) for p in parts]
        heads = [p.narrow(dim, 0, step) for p in parts]
        parts = [torch.cat([h, j], dim) for h, j in zip(heads, joined(earlier, later), strict=True)]
        step *= 2
    return parts


def _extreme(after: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """Return an op that gives the largest or smallest value so far and its last position; the last NaN wins."""

    def joined(earlier: list[Tensor], later: list[Tensor]) -> list[Tensor]:
        taken = after(later[0], earlier[0])
        taken = taken | later[0].isnan() if later[0].is_floating_point() else taken
        return [torch.where(taken, b, a) for a, b in zip(earlier, later, strict=True)]

    def accumulated(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        positions = torch.ones_like(values, dtype=torch.int64).cumsum(dim) - 1
        found, at = _scanned([values, positions], dim, joined)
        return found, at

    return accumulated


def _log_sum_exp(values: Tensor, dim: int) -> Tensor:
    """Accumulate in logarithms; the exporter subtracts the largest of all, beside which early terms become -inf."""
    (found,) = _scanned([values], dim, lambda a, b: [log_add_exp(a[0], b[0])])
    return found


def _kth(values: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor]:
    """Return the k-th smallest value, k from 1."""
    found = torch.topk(values, k, dim, largest=False).values.narrow(dim, k - 1, 1)
    return (found if keepdim else found.squeeze(dim),)


def _median(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor]:
    """Return the lower of the middle values, NaN if there is one."""
    (found,) = _kth(values, (values.shape[dim] + 1) // 2, dim, True)
    if values.is_floating_point():
        found = found.masked_fill(values.isnan().any(dim, keepdim=True), math.nan)
    return (found if keepdim else found.squeeze(dim),)


def _mode(values: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor]:
    """Return the most frequent value, the smallest of several; a NaN is no value."""
    ahead = values.movedim(dim, -1)
    counts = (ahead.unsqueeze(-1) == ahead.unsqueeze(-2)).to(torch.int32).sum(-1, dtype=torch.int32)
    most = counts == counts.amax(-1, keepdim=True)
    largest = math.inf if values.is_floating_point() else torch.iinfo(values.dtype).max
    (found,) = _kth(ahead.masked_fill(~most, largest), 1)  # of 64-bit integers, ONNX Runtime's ReduceMin is wrong
    return (found.unsqueeze(dim) if keepdim else found,)


#: What computes each op: its values, and the positions only of ``cummax`` and ``cummin``.
ALONG_AXIS: dict[Any, Callable[..., Any]] = {
    aten.bucketize.Tensor: _bucketize,
    aten.cummax.default: _extreme(torch.ge),
    aten.cummin.default: _extreme(torch.le),
    aten.logcumsumexp.default: _log_sum_exp,
    aten.kthvalue.default: _kth,
    aten.median.dim: _median,
    aten.mode.default: _mode,
}
