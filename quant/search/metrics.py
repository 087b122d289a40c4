"""How far scores moved: SQNR, rank agreement, AUC."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quant.schemes.numerics import sqnr_db

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Effect:
    """Scores against reference scores: the worst task's SQNR and Kendall tau, the largest AUC change.

    ``auc_change`` is the signed change (after minus before) of largest magnitude, None without usable labels.
    """

    sqnr_db: float
    kendall_tau: float
    auc_change: float | None


def auc(scores: Scores, labels: Scores) -> float | None:
    """Return the area under the ROC curve, ties counted half; None where only one class is present."""
    positive = labels > 0.5
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return None
    from scipy.stats import rankdata  # long to import, and most commands rank nothing

    ranks = rankdata(scores)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def effect_of(reference: dict[str, Scores], scores: dict[str, Scores], labels: dict[str, Scores]) -> Effect:
    """Compare scores [rows] per task with the reference's."""
    changes = []
    for task, before in reference.items():
        if task in labels:
            first, second = auc(before, labels[task]), auc(scores[task], labels[task])
            if first is not None and second is not None:
                changes.append(second - first)
    return Effect(
        min(sqnr_db(before, scores[task]) for task, before in reference.items()),
        min(_tau(before, scores[task]) for task, before in reference.items()),
        max(changes, key=abs) if changes else None,
    )


def _tau(reference: Scores, scores: Scores) -> float:
    if np.array_equal(reference, scores):
        return 1.0
    from scipy.stats import kendalltau

    tau = float(kendalltau(reference, scores).statistic)
    return tau if np.isfinite(tau) else 0.0  # all scores equal: no ranking left to agree
