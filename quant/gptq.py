"""GPTQ (arXiv 2210.17323): round one input row at a time and let the rows after it make up for the error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from quant.numerics import QMAX, Floats, Ints, quantize

Doubles = npt.NDArray[np.float64]

_ROWS = 128  # rows rounded before their errors go to the remaining rows in one matrix product


def gptq(weight: Floats, scale: Floats, gram: Doubles, damping: float = 0.01) -> Ints:
    """Return int8 values [K, N] for a fixed scale [B, N] that nearly minimise ||X (W - restored)||^2.

    ``gram`` is X^T X, float64 [K, K], in any scaling. Rows with the largest inputs are rounded first (section 3.3,
    "act-order"). ``damping`` times the mean of the diagonal is added to it (doubled until Cholesky succeeds). A
    channel that would come out worse than by plain rounding keeps plain rounding, so the result is never worse
    than that under the calibrated objective.
    """
    inputs, outputs = weight.shape
    plain = quantize(weight, scale)
    power = np.diag(gram)
    if not power.any():
        return plain
    order = np.argsort(-power, kind="stable")
    upper = _inverse_factor(gram[np.ix_(order, order)], damping).astype(np.float32)
    rows_per_block = inputs // scale.shape[0]
    block_of = order // rows_per_block
    rest = weight[order].copy()  # [K, N], what is still to be rounded, errors of earlier rows worked in
    values = np.empty((inputs, outputs), np.float32)
    for start in range(0, inputs, _ROWS):
        stop = min(start + _ROWS, inputs)
        part = rest[start:stop]
        errors = np.empty_like(part)
        for row in range(stop - start):
            at = start + row
            step = scale[block_of[at]]
            rounded = np.rint(part[row] / step)
            np.clip(rounded, -QMAX, QMAX, out=rounded)
            values[at] = rounded
            errors[row] = (part[row] - rounded * step) / upper[at, at]
            part[row + 1 :] -= upper[at, at + 1 : stop, None] * errors[row]
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    found = np.empty((inputs, outputs), np.int8)
    found[order] = values
    better = gram_error(weight, found, scale, gram) < gram_error(weight, plain, scale, gram)
    return np.where(better, found, plain)


def gram_error(weight: Floats, values: Ints, scale: Floats, gram: Doubles) -> Doubles:
    """Return ||X (w - restored)||^2 per output channel, float64 [N], up to the scaling of the Gram matrix."""
    steps = np.repeat(scale, weight.shape[0] // scale.shape[0], axis=0) if scale.shape[0] > 1 else scale
    difference = weight - values * steps  # [K, N]
    peak = float(np.diag(gram).max()) or 1.0
    # float32 is enough to compare, and K^2 N is the largest product here
    moved = (gram / peak).astype(np.float32) @ difference
    result: Doubles = np.einsum("kn,kn->n", difference, moved, dtype=np.float64) * peak
    return result


def _inverse_factor(gram: Doubles, damping: float) -> Doubles:
    """Return the upper triangular U with U^T U = (gram + damping)^-1, [K, K].

    With the axes reversed, gram = L L^T gives U = reverse(L^-1): one factorisation and one triangular inverse.
    """
    mean = float(np.diag(gram).mean())
    while True:
        reversed_gram = np.array(gram[::-1, ::-1], order="F")
        reversed_gram[np.diag_indices_from(reversed_gram)] += damping * mean
        lower, failed = lapack.dpotrf(reversed_gram, lower=1, clean=1, overwrite_a=1)
        if not failed:
            inverse, _ = lapack.dtrtri(lower, lower=1, overwrite_c=1)
            return np.ascontiguousarray(inverse[::-1, ::-1])
        damping *= 2
