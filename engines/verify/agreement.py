"""How far engine scores are from the FP32 model: error, SQNR, and agreement of the ranking within requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from engines.backends.contract import Array
from quant.schemes.numerics import sqnr_db
from quant.search.metrics import kendall_tau

EXACT_DB = 400.0  # SQNR of bit-equal scores: above what FP64 resolves, and a number that JSON can hold


@dataclass(frozen=True)
class Agreement:
    """How one set of logits agrees with the reference over all rows of all requests.

    ``kendall_tau`` and ``top_k_overlap`` are means over the requests that can be ranked at all (two or more
    different reference scores); ``max_probability`` is the largest difference of the sigmoids.
    """

    max_abs: float
    p999_abs: float
    max_probability: float
    sqnr_db: float
    kendall_tau: float
    top_k_overlap: float
    rows: int

    def as_dict(self) -> dict[str, float]:
        """Return the block as ``report.json`` holds it."""
        return asdict(self)


def agreement(reference: Sequence[Array], actual: Sequence[Array], k: int = 10) -> Agreement:
    """Compare the logits of requests, one array [N_i] or [N_i, 1] each; NaN in either makes every figure NaN."""
    reference, actual = ([np.ravel(logits) for logits in given] for given in (reference, actual))
    r, a = np.concatenate(reference).astype(np.float64), np.concatenate(actual).astype(np.float64)
    if not (np.isfinite(r).all() and np.isfinite(a).all()):
        nan = float("nan")
        return Agreement(nan, nan, nan, nan, nan, nan, len(r))
    error = np.abs(a - r)
    overlaps = [
        _top_k_overlap(wanted, got, k)
        for wanted, got in zip(reference, actual, strict=True)
        if len(np.unique(wanted)) > 1
    ]
    return Agreement(
        max_abs=float(error.max()),
        p999_abs=float(np.quantile(error, 0.999)),
        max_probability=float(np.abs(probability(a) - probability(r)).max()),
        sqnr_db=min(sqnr_db(r, a), EXACT_DB),
        kendall_tau=kendall_tau(reference, actual),
        top_k_overlap=float(np.mean(overlaps)) if overlaps else 1.0,
        rows=len(r),
    )


def _top_k_overlap(reference: Array, actual: Array, k: int) -> float:
    k = min(k, len(reference))
    best = np.argsort(-reference, kind="stable")[:k]
    chosen = np.argsort(-actual, kind="stable")[:k]
    return len(np.intersect1d(best, chosen)) / k


def probability(logits: Array) -> Array:
    """Return the sigmoid of logits, without overflow."""
    result: Array = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return result
