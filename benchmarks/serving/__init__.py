"""Measurements of ``ugsep serve`` under load; run them with ``python -m benchmarks.serving``."""

__all__: list[str] = []
