"""How far the scores of one task moved between two sets of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.backends.contract import Array
from engines.verify.agreement import Agreement, agreement
from engines.verify.scores import Scores
from quant.search.metrics import kendall_tau

__all__ = ["MovedRequest", "TaskDrift", "drift_by_task"]

_MOST_MOVED = 10


@dataclass(frozen=True)
class MovedRequest:
    """A request whose scores moved: its number, size, largest absolute difference and Kendall tau."""

    request_id: int
    candidates: int
    max_abs: float
    kendall_tau: float


@dataclass(frozen=True)
class TaskDrift:
    """The logits of one task against the reference's.

    ``differences`` has one entry per row, ``taus`` one per request that can be ranked (two or more different
    reference scores); ``most_moved`` are the requests with the largest differences, largest first.
    """

    agreement: Agreement
    differences: Array
    taus: Array
    most_moved: tuple[MovedRequest, ...]

    @property
    def mean_abs(self) -> float:
        """The mean absolute difference."""
        return float(np.abs(self.differences).mean())

    @property
    def p99_abs(self) -> float:
        """The 99th percentile of the absolute differences."""
        return float(np.quantile(np.abs(self.differences), 0.99))

    @property
    def lowest_tau(self) -> float:
        """The Kendall tau of the request whose ranking changed most; 1 if no request can be ranked."""
        return float(self.taus.min()) if self.taus.size else 1.0

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON, without the entry per row and request."""
        figures = {"mean_abs": self.mean_abs, "p99_abs": self.p99_abs, "lowest_tau": self.lowest_tau}
        return {**self.agreement.as_dict(), **figures, "most_moved": [vars(request) for request in self.most_moved]}


def drift_by_task(ids: Sequence[int], reference: Scores, actual: Scores, k: int) -> dict[str, TaskDrift]:
    """Compare two sets of scores of the same requests, for every task that both have; ``k`` as in top-k."""
    tasks = [task for task in reference[0] if task in actual[0]]
    return {task: _drift(ids, [r[task] for r in reference], [a[task] for a in actual], k) for task in tasks}


def _drift(ids: Sequence[int], reference: Sequence[Array], actual: Sequence[Array], k: int) -> TaskDrift:
    differences = [a.astype(np.float64) - r for r, a in zip(reference, actual, strict=True)]
    taus = [kendall_tau([r], [a]) for r, a in zip(reference, actual, strict=True)]  # 1 if it cannot be ranked
    rankable = [len(np.unique(r)) > 1 for r in reference]
    largest = np.array([np.abs(d).max() for d in differences])
    order = np.argsort(-largest, kind="stable")[:_MOST_MOVED]
    moved = tuple(
        MovedRequest(ids[i], len(differences[i]), float(largest[i]), taus[i])
        for i in order.tolist()
        if largest[i] > 0
    )
    return TaskDrift(
        agreement(reference, actual, k), np.concatenate(differences), np.array(taus)[np.array(rankable)], moved
    )
