"""Symmetric int8 weight numerics: pure functions on arrays, independent of models and files.

A weight is float32 ``[..., K, N]`` with at most one leading axis (feature tokens): K inputs, N outputs. K is cut in B
blocks of ``block`` rows (0: one block, a scale per output channel), so a scale is float32 ``[..., B, N]``. No zero
point; values are in [-127, 127]. Every scale is exact in FP16, so that an FP16-typed and an FP32-typed graph hold
the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from quant.arrays import Doubles, Floats, Ints

QMAX = 127
CLIP_RATIOS = tuple(float(r) for r in np.linspace(1.0, 0.4, 25))
_CHUNK_ELEMENTS = 1 << 17  # 512 KiB of float32: a column chunk and its buffer stay in the L2 cache


def blocks_of(inputs: int, block: int) -> int:
    """Return the number of scale blocks along K.

    Raises:
        ValueError: ``block`` is negative or does not divide K.
    """
    if block == 0:
        return 1
    if block < 0 or inputs % block:
        raise ValueError(f"block {block} does not divide K = {inputs}")
    return inputs // block


def representable(scale: npt.NDArray[np.floating]) -> Floats:
    """Round positive scales up to the next FP16 value (at least 2**-24), returned as float32 of the same shape.

    Up, not to nearest: in the subnormal range the nearest value can be a third smaller and would clip the weights.
    """
    bounded = np.clip(scale, 2.0**-24, np.finfo(np.float16).max)
    fp16 = bounded.astype(np.float16)
    with np.errstate(over="ignore"):  # above the largest value there is inf, which is not selected
        fp16 = np.where(fp16 < bounded, np.nextafter(fp16, np.float16(np.inf)), fp16)
    exact: Floats = fp16.astype(np.float32)
    return exact


def absmax_scale(weight: Floats, block: int = 0) -> Floats:
    """Return the scale [..., B, N] that maps the largest magnitude of each block to 127."""
    blocked = _blocked(weight, block)
    largest = np.maximum(blocked.max(axis=-2), -blocked.min(axis=-2))
    return representable(largest.astype(np.float64) / QMAX)


def quantize(weight: Floats, scale: Floats) -> Ints:
    """Return round-half-even(weight / scale) clipped to [-127, 127], int8 of the weight's shape."""
    out = np.empty(weight.shape, np.int8)
    lead, inputs, _ = _three(weight.shape)
    weights, outs = weight.reshape(lead, inputs, -1), out.reshape(lead, inputs, -1)
    scales = scale.reshape(lead, *scale.shape[-2:])
    rows = inputs // scale.shape[-2]
    for token in range(lead):  # one token and one block at a time bound the temporary
        for b in range(scale.shape[-2]):
            part = slice(b * rows, (b + 1) * rows)
            scaled = weights[token, part] / scales[token, b]
            np.rint(scaled, out=scaled)
            outs[token, part] = np.clip(scaled, -QMAX, QMAX, out=scaled)
    return out


def dequantize(values: Ints, scale: Floats) -> Floats:
    """Return values * scale, float32 of the shape of ``values``."""
    blocks = scale.shape[-2]
    shape = (*values.shape[:-2], blocks, values.shape[-2] // blocks, values.shape[-1])
    restored = values.reshape(shape).astype(np.float32)
    restored *= scale[..., :, None, :]
    return restored.reshape(values.shape)


def sqnr_db(signal: npt.NDArray[np.floating], approximation: npt.NDArray[np.floating]) -> float:
    """Return 10 log10(sum signal^2 / sum (signal - approximation)^2) in dB; inf if both are equal."""
    reference = np.asarray(signal, np.float64)
    return ratio_db(float(np.sum(reference**2)), float(np.sum((reference - approximation) ** 2)))


def row_energy(weight: Floats) -> Doubles:
    """Return sum_n w_kn^2 per input row, float64 [..., K], the terms of SQNR and output SQNR."""
    result = np.empty(weight.shape[:-1], np.float64)
    for token in np.ndindex(weight.shape[:-2]):  # one token at a time bounds the temporary
        part = np.asarray(weight[token], np.float64)
        result[token] = np.einsum("kn,kn->k", part, part)
    return result


def ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) in dB; inf without noise, -inf if there is only noise."""
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def output_error(weight: Floats, restored: Floats, moments: npt.NDArray[np.floating]) -> Doubles:
    """Return sum_k E[x_k^2] (w - restored)^2 per output channel, float64 [..., N].

    ``moments`` is E[x_k^2], [..., K]. This is the expected squared output error for uncorrelated inputs.
    """
    difference = np.asarray(weight, np.float64) - restored
    result: Doubles = np.einsum("...kn,...k->...n", difference**2, np.asarray(moments, np.float64))
    return result


def mse_scale(
    weight: Floats,
    moments: npt.NDArray[np.floating],
    block: int = 0,
    ratios: tuple[float, ...] = CLIP_RATIOS,
    threads: int = 2,
) -> Floats:
    """Return the scale [..., B, N] that clips with the least calibrated output error.

    Tries ``ratio * absmax`` for every ratio and keeps, per block and channel, the one that minimises
    sum_k E[x_k^2] (w_k - restored_k)^2. ``moments`` is E[x_k^2], [..., K]. Ratio 1 is always tried and wins ties,
    so the result is never worse than :func:`absmax_scale` under this objective.
    """
    lead, inputs, outputs = _three(weight.shape)
    blocks = blocks_of(inputs, block)
    largest = absmax_scale(weight, block).reshape(lead, blocks, outputs)
    weights = weight.reshape(lead, inputs, outputs)
    second = np.asarray(moments, np.float64).reshape(lead, inputs)
    peak = second.max(axis=-1, keepdims=True)
    second = second / np.where(peak > 0, peak, 1.0)  # same minimum, and float32 cannot overflow
    relative = second.astype(np.float32).reshape(lead, blocks, inputs // blocks, 1)
    tried = (1.0, *(r for r in ratios if r != 1.0))
    best = np.empty_like(largest)

    def search(chunk: tuple[int, slice]) -> None:
        token, columns = chunk
        # Channels first and contiguous: [c, B, K/B]
        part = np.ascontiguousarray(weights[token, :, columns].T).reshape(-1, blocks, inputs // blocks)
        base = largest[token, :, columns].T  # [c, B]
        best[token, :, columns] = _least_error(part, base, relative[token], tried).T

    with ThreadPoolExecutor(max(1, threads)) as pool:  # NumPy releases the GIL inside each operation
        for _ in pool.map(search, _column_chunks(lead, inputs, outputs)):
            continue
    return best.reshape(*weight.shape[:-2], blocks, outputs)


def _least_error(part: Floats, base: Floats, moments: Floats, ratios: tuple[float, ...]) -> Floats:
    """Search one chunk: part [c, B, R], base [c, B], moments [B, R, 1] -> scale [c, B]."""
    buffer = np.empty_like(part)
    least = np.full(base.shape, np.inf, np.float32)
    best = base.astype(np.float32)
    for ratio in ratios:
        scale = base if ratio == 1.0 else representable(base * np.float32(ratio))
        np.multiply(part, (np.float32(1) / scale)[..., None], out=buffer)
        np.rint(buffer, out=buffer)
        np.clip(buffer, -QMAX, QMAX, out=buffer)
        np.multiply(buffer, scale[..., None], out=buffer)
        np.subtract(buffer, part, out=buffer)
        np.multiply(buffer, buffer, out=buffer)
        error = np.matmul(buffer.swapaxes(0, 1), moments)[..., 0].T  # [B, c, R] @ [B, R, 1] -> [c, B]
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, scale, best)
    return best


def _column_chunks(lead: int, inputs: int, outputs: int) -> Iterator[tuple[int, slice]]:
    width = max(1, _CHUNK_ELEMENTS // inputs)
    for token in range(lead):
        for start in range(0, outputs, width):
            yield token, slice(start, min(start + width, outputs))


def _blocked(weight: Floats, block: int) -> Floats:
    *lead, inputs, outputs = weight.shape
    blocks = blocks_of(inputs, block)
    return weight.reshape(*lead, blocks, inputs // blocks, outputs)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (tokens, K, N); a 2-D weight has one token."""
    if len(shape) not in (2, 3):
        raise ValueError(f"a weight is [K, N] or [T, K, N], not {list(shape)}")
    return (shape[0] if len(shape) == 3 else 1), shape[-2], shape[-1]
