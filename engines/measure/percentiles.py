"""Latency percentiles in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds at the 50th, 90th and 99th percentile."""

    p50: float
    p90: float
    p99: float
