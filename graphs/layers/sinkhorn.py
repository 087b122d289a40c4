"""Sinkhorn normalisation: make a square matrix of scores (nearly) doubly stochastic."""

from __future__ import annotations

from torch import Tensor


def sinkhorn(scores: Tensor, temperature: Tensor, steps: int) -> Tensor:
    """Return exp(scores / temperature) with rows and columns scaled to sum to 1; [..., K, K] -> [..., K, K].

    Uses logarithms, since at temperature 0.05 the exponentials overflow FP32. Each of the ``steps`` scales rows, then
    columns, so column sums are exact and row sums approach 1.
    """
    logs = scores / temperature
    for _ in range(steps):
        logs = logs - logs.logsumexp(-1, keepdim=True)
        logs = logs - logs.logsumexp(-2, keepdim=True)
    return logs.exp()


def symmetrised(scores: Tensor) -> Tensor:
    """Return (W + W^T) / 2 over the last two axes."""
    return (scores + scores.mT) / 2
