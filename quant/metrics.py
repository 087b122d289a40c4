"""How far scores are from their reference: error, SQNR, rank agreement, AUC. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[Any]


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


def sqnr_db(reference: Array, actual: Array) -> float:
    """Return the signal-to-noise ratio 10 log10(sum r² / sum (a - r)²) in dB, in FP64; NaN where either has one.

    Exact agreement is reported as 400 dB, above anything FP64 can resolve, so that JSON can hold it.
    """
    r, a = reference.astype(np.float64), actual.astype(np.float64)
    noise = float(((a - r) ** 2).sum())
    signal = float((r**2).sum())
    if noise == 0.0:
        return 400.0
    return float(10 * np.log10(signal / noise)) if signal > 0 else -400.0


def agreement(reference: Sequence[Array], actual: Sequence[Array], k: int = 10) -> Agreement:
    """Compare the logits of requests, one array [N_i] per request; NaN in either makes every figure NaN."""
    r, a = np.concatenate(reference).astype(np.float64), np.concatenate(actual).astype(np.float64)
    if not (np.isfinite(r).all() and np.isfinite(a).all()):
        nan = float("nan")
        return Agreement(nan, nan, nan, nan, nan, nan, len(r))
    error = np.abs(a - r)
    taus, overlaps = [], []
    for wanted, got in zip(reference, actual, strict=True):
        if len(np.unique(wanted)) > 1:
            # A constant answer ranks nothing: scipy gives NaN there, which is no agreement.
            taus.append(float(np.nan_to_num(scipy.stats.kendalltau(wanted, got).statistic)))
            overlaps.append(_top_k_overlap(wanted, got, k))
    return Agreement(
        max_abs=float(error.max()),
        p999_abs=float(np.quantile(error, 0.999)),
        max_probability=float(np.abs(probability(a) - probability(r)).max()),
        sqnr_db=sqnr_db(r, a),
        kendall_tau=float(np.mean(taus)) if taus else 1.0,
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


def auc(labels: Array, scores: Array) -> float:
    """Return the area under the ROC curve, ties counted half; NaN where only one class is present."""
    positive = labels > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0 or not np.isfinite(scores).all():
        return float("nan")
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))
