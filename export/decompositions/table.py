"""Decompositions of ops that the ONNX exporter or ONNX Runtime compute otherwise than PyTorch does.

Those of integers are in ``integers``, of floats in ``float_forms``, of ops along an axis in ``along_axis``.
Attention: PyTorch gives a query without keys the value 0, a plain softmax NaN. Others have no valid ONNX form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from export.decompositions.along_axis import ALONG_AXIS
from export.decompositions.float_forms import FLOAT_FORMS
from export.decompositions.integers import DIVISIONS, INTEGER

__all__ = ["decomposition", "exporter_differs"]

aten = torch.ops.aten


def decomposition(node: fx.Node) -> Callable[..., Any] | None:
    """Return a function that computes a node as PyTorch does, or None if its op can be exported as it is."""
    if node.target in _ALWAYS:
        return _ALWAYS[node.target]
    if node.target is aten.index.Tensor and _looks_up_rows(node):
        return _rows_of
    result = node.meta.get("val")
    result = result[0] if isinstance(result, (tuple, list)) and result else result  # values, and their positions
    if not isinstance(result, Tensor) or result.dtype == torch.bool:
        return None
    if result.dtype.is_floating_point:
        return FLOAT_FORMS.get(node.target)
    if node.target in DIVISIONS and isinstance(node.args[1], int) and node.args[1] != -1:
        return None
    return INTEGER.get(node.target)


def exporter_differs(node: fx.Node) -> bool:
    """Return whether the exporter's own form of a node gives other values than PyTorch for some inputs."""
    if node.target is aten.scaled_dot_product_attention.default:
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        return mask is not None
    return node.target in {*INTEGER, *FLOAT_FORMS, *ALONG_AXIS} and decomposition(node) is not None


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


_ALWAYS: dict[Any, Callable[..., Any]] = {
    **ALONG_AXIS,
    aten.scaled_dot_product_attention.default: _attention,
    aten.isin.Tensor_Tensor: _is_in,
    aten.nan_to_num.default: _finite,
    aten.rrelu.default: _randomized_relu,
    aten.embedding_bag.default: _bag,
    aten.embedding_bag.padding_idx: _bag,
}
