"""Absmax int8 of one chunk of a weight, bit for bit what ``quant.schemes.numerics`` gives, in small buffers.

A chunk is a torch tensor of any float dtype and strides, because NumPy has no bfloat16. It holds whole columns (all K
inputs of its outputs) or, for tables, whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.arrays import Floats, Ints
from quant.schemes import numerics

_TILE_ELEMENTS = 1 << 18  # two float32 buffers of this size stay in the caches
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_LARGEST_SCALE = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Quantized:
    """int8 (or FP16) values of the chunk's shape, scale [B, n] (tables: [rows]; FP16: none), sums of squares.

    ``signal`` is the energy of the weight, ``noise`` that of the quantization error.
    """

    values: Ints | np.ndarray[tuple[int, ...], np.dtype[np.float16]]
    scale: Floats | None
    signal: float
    noise: float


def quantize_columns(weight: Tensor, block: int, buffer: Tensor | None = None) -> Quantized | None:
    """Quantize [K, n], ``block`` rows of K per scale (0: all); None if the weight has NaN or Inf.

    The values are written to ``buffer``, int8 [>= K n], if given.
    """
    inputs, outputs = weight.shape
    blocks = numerics.blocks_of(inputs, block)
    rows = inputs // blocks
    weight = weight if weight.stride(-1) == 1 else weight.contiguous()
    values = _values(weight, buffer)
    scales = np.empty((blocks, outputs), np.float32)
    signal = noise = 0.0
    for b in range(blocks):
        part = slice(b * rows, (b + 1) * rows)
        largest = _largest(weight[part])
        if not np.isfinite(largest).all():
            return None
        scales[b] = numerics.representable(largest.astype(np.float64) / numerics.QMAX)
        energy = _round(weight[part], torch.from_numpy(scales[b]), values[part])
        signal, noise = signal + energy[0], noise + energy[1]
    return Quantized(values.numpy(), scales, signal, noise)


def quantize_rows(table: Tensor, buffer: Tensor | None = None) -> Quantized | None:
    """Quantize rows [v, D] of an embedding table, one scale per row; None if the table has NaN or Inf.

    The values are written to ``buffer``, int8 [>= v D], if given.
    """
    largest = table.abs().amax(1).float().numpy()
    if not np.isfinite(largest).all():
        return None
    scale = numerics.representable(largest.astype(np.float64) / numerics.QMAX)
    values = _values(table, buffer)
    signal, noise = _round(table, torch.from_numpy(scale).unsqueeze(1), values)
    return Quantized(values.numpy(), scale, signal, noise)


def to_fp16(weight: Tensor) -> Quantized | None:
    """Store a chunk as FP16; None if it has NaN or Inf, or exceeds the FP16 range."""
    wide = weight.float().contiguous()
    fp16 = wide.half()
    if not bool(torch.isfinite(fp16).all()):
        return None
    missed = wide - fp16.float()
    return Quantized(fp16.numpy(), None, float(wide.double().square().sum()), float(missed.double().square().sum()))


def _values(weight: Tensor, buffer: Tensor | None) -> Tensor:
    return (
        torch.empty(weight.shape, dtype=torch.int8) if buffer is None else buffer[: weight.numel()].view(weight.shape)
    )


def _largest(weight: Tensor) -> Floats:
    """Return the largest magnitude of every column; NaN or Inf if the column has one."""
    rows = max(1, _TILE_ELEMENTS // weight.shape[1])
    # Without the sign bit, floats order like integers, NaN last: several times faster than abs and maximum on BF16.
    bits = weight.view(_BITS[weight.dtype.itemsize])
    mask = torch.iinfo(bits.dtype).max
    found = torch.zeros(weight.shape[1], dtype=bits.dtype)
    plain = torch.empty((min(rows, weight.shape[0]), weight.shape[1]), dtype=bits.dtype)
    for start in range(0, weight.shape[0], rows):
        part = bits[start : start + rows]
        torch.bitwise_and(part, mask, out=plain[: len(part)])
        torch.maximum(found, plain[: len(part)].amax(0), out=found)
    largest: Floats = found.view(weight.dtype).float().numpy()
    return largest


def _round(weight: Tensor, scale: Tensor, values: Tensor) -> tuple[float, float]:
    """Write round-half-even(weight / scale) to ``values``; returns the energies of weight and error."""
    rows = max(1, _TILE_ELEMENTS // weight.shape[1])
    exact = torch.empty((min(rows, weight.shape[0]), weight.shape[1]))
    rounded = torch.empty_like(exact)
    by_row = scale.dim() == 2
    clips = float(scale.max()) >= _LARGEST_SCALE  # below that, nothing exceeds 127
    signal = noise = 0.0
    for start in range(0, weight.shape[0], rows):
        stop = min(start + rows, weight.shape[0])
        w, q = exact[: stop - start], rounded[: stop - start]
        s = scale[start:stop] if by_row else scale
        w.copy_(weight[start:stop])
        torch.div(w, s, out=q)
        q.round_()
        if clips:
            q.clamp_(-numerics.QMAX, numerics.QMAX)
        values[start:stop].copy_(q)
        flat, missed = w.view(-1), q.view(-1)
        signal += float(torch.dot(flat, flat))
        torch.addcmul(w, q, s, value=-1, out=q)
        noise += float(torch.dot(missed, missed))
    return signal, noise
