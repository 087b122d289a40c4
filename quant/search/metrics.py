"""How far scores moved: SQNR, Kendall tau, AUC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quant.arrays import Array
from quant.schemes.numerics import sqnr_db


@dataclass(frozen=True)
class Effect:
    """Scores against reference scores: the lowest SQNR and mean Kendall tau of all tasks, the largest AUC change.

    ``auc_change`` is the signed change (after minus before) of largest magnitude, None without usable labels.
    """

    sqnr_db: float
    kendall_tau: float
    auc_change: float | None


def auc(scores: Array, labels: Array) -> float | None:
    """Return the area under the ROC curve, ties counted as one half; None if only one class is present."""
    positive = labels > 0.5
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return None
    from scipy.stats import rankdata  # slow to import, and most commands do not need it

    ranks = rankdata(scores)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def effect_of(
    reference: Mapping[str, Array], scores: Mapping[str, Array], labels: Mapping[str, Array], sizes: Sequence[int]
) -> Effect:
    """Compare scores [rows] per task with the reference's; ``sizes`` are the candidates of each request, in order."""
    changes = []
    for task, before in reference.items():
        if task in labels:
            first, second = auc(before, labels[task]), auc(scores[task], labels[task])
            if first is not None and second is not None:
                changes.append(second - first)
    bounds = np.cumsum(sizes)[:-1]
    return Effect(
        min(sqnr_db(before, scores[task]) for task, before in reference.items()),
        min(kendall_tau(np.split(r, bounds), np.split(scores[task], bounds)) for task, r in reference.items()),
        max(changes, key=abs) if changes else None,
    )


def kendall_tau(reference: Sequence[Array], scores: Sequence[Array]) -> float:
    """Return the mean Kendall tau of the requests, one array [N_i] each: candidates are ranked within a request.

    Requests with fewer than two distinct reference scores have no ranking and do not count; 1.0 if no request counts.
    """
    from scipy.stats import kendalltau  # slow to import, and most commands do not need it

    taus = [
        # scipy returns NaN for constant scores, which have no ranking: no agreement.
        float(np.nan_to_num(kendalltau(wanted, got).statistic))
        for wanted, got in zip(reference, scores, strict=True)
        if len(np.unique(wanted)) > 1
    ]
    return float(np.mean(taus)) if taus else 1.0
