"""Timers and machine limits."""

from engines.measure.percentiles import Percentiles

__all__ = ["Percentiles"]
