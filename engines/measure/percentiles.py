"""Latency percentiles in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Percentiles"]


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds at the 50th, 90th and 99th percentile."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Percentiles:
        """Return those of at least one sample."""
        return cls(*map(float, np.percentile(milliseconds, (50, 90, 99))))
