"""Campaigns that try to break ugsep; run them with ``python -m benchmarks.reliability``."""

__all__ = ["contract", "run", "small_files", "small_model", "summary"]
