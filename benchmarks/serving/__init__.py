"""Measurements of ``ugsep serve`` under load; run them with ``python -m benchmarks.serving``."""

__all__ = ["campaigns", "load", "rivals", "servers"]
