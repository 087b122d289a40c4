"""Quality of scores on held-out rows: AUC and log-loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import quant.search.metrics
from graphs.base.errors import UgsepError


def auc(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the probability that a positive row scores above a negative one, ties counted half; [R] each.

    Raises:
        UgsepError: all labels are equal.
    """
    found = quant.search.metrics.auc(np.asarray(scores), np.asarray(labels))
    if found is None:
        raise UgsepError("AUC needs rows of both labels; hold out more days")
    return found


def log_loss(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """Return the mean binary cross-entropy of logits in nats; [R] each."""
    z = np.asarray(logits, np.float64)
    return float(np.mean(np.logaddexp(0.0, z) - np.asarray(labels, np.float64) * z))
