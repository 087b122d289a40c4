"""GPTQ (arXiv 2210.17323): round one input row at a time and let the later rows compensate for the error.

Written with the Cholesky factor R of the Gram matrix itself, ||X d||^2 = ||R d||^2, rather than with one of its
inverse: going from the last row to the first, each row is rounded so that its own entry of R d is as small as it can
be. That is the same algorithm with the axes reversed, without the inversion.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quant.arrays import Doubles, Floats, Ints
from quant.schemes.numerics import QMAX, quantize

_ROWS = 128  # rows rounded before one matrix product carries their errors to the remaining rows


def gptq(
    weight: Floats, scale: Floats, gram: Doubles, damping: float = 0.01, plain_scale: Floats | None = None
) -> tuple[Ints, Floats]:
    """Return int8 values [K, N] and their scale [B, N] that nearly minimise ||X (W - restored)||^2.

    ``gram`` is X^T X, float64 [K, K], in any scaling. Rows with the largest inputs are rounded first (section 3.3,
    "act-order"). ``damping`` times the mean of the diagonal is added to it (doubled until Cholesky succeeds). A
    channel that ends up worse than plain rounding on ``plain_scale`` (default: ``scale``) is rounded plainly, so the
    result is never worse under the calibrated objective.
    """
    plain_scale = scale if plain_scale is None else plain_scale
    plain = quantize(weight, plain_scale)
    power = np.diag(gram)
    if not power.any():
        return plain, plain_scale
    order = np.argsort(power, kind="stable")  # the last row is rounded first
    found = np.empty_like(plain)
    found[order] = _feedback(weight[order], _steps(weight, scale)[order], _factor(gram, order, damping))
    better = gram_error(weight, found, scale, gram) < gram_error(weight, plain, plain_scale, gram)
    return np.where(better, found, plain), np.where(better, scale, plain_scale)


def _feedback(weight: Floats, steps: Floats, factor: Floats) -> Floats:
    """Round from the last row to the first: weight and steps [K, N], factor upper triangular [K, K]."""
    inputs = len(weight)
    values = np.empty_like(weight)
    errors = np.empty_like(weight)  # w - restored, of the rows done
    for stop in range(inputs, 0, -_ROWS):
        start = max(0, stop - _ROWS)
        owed = factor[start:stop, stop:] @ errors[stop:]  # [rows, N]
        for at in range(stop - 1, start - 1, -1):
            row = owed[at - start] + factor[at, at + 1 : stop] @ errors[at + 1 : stop]
            rounded = np.rint((weight[at] + row / factor[at, at]) / steps[at])
            np.clip(rounded, -QMAX, QMAX, out=rounded)
            values[at] = rounded
            errors[at] = weight[at] - rounded * steps[at]
    return values


def gram_error(weight: Floats, values: Ints, scale: Floats, gram: Doubles) -> Doubles:
    """Return ||X (w - restored)||^2 per output channel, float64 [N], up to the scaling of the Gram matrix."""
    difference = weight - values * _steps(weight, scale)  # [K, N]
    peak = float(np.diag(gram).max()) or 1.0
    # float32 is enough to compare, and K^2 N is the largest product here
    moved = (gram / peak).astype(np.float32) @ difference
    result: Doubles = np.einsum("kn,kn->n", difference, moved, dtype=np.float64) * peak
    return result


def _steps(weight: Floats, scale: Floats) -> Floats:
    """Return the scale of every row, [K, N]."""
    repeated: Floats = np.repeat(scale, weight.shape[0] // scale.shape[0], axis=0)
    return repeated


def _factor(gram: Doubles, order: npt.NDArray[np.intp], damping: float) -> Floats:
    """Return the upper triangular R, float32 [K, K], with R^T R = the damped, reordered Gram matrix over a constant.

    float32: the damping bounds the condition number to about K / damping, and rounding decisions need few digits.
    """
    from scipy.linalg import lapack  # slow to import, and most schemes do not need it

    mean = float(np.diag(gram).mean())
    ordered = (gram[np.ix_(order, order)] / mean).astype(np.float32)
    while True:
        damped = np.array(ordered, order="F")
        damped[np.diag_indices_from(damped)] += np.float32(damping)
        upper, failed = lapack.spotrf(damped, lower=0, clean=1, overwrite_a=1)
        if not failed:
            return np.ascontiguousarray(upper, np.float32)
        damping *= 2
