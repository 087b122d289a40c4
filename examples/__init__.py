"""Worked examples on public data; run from the repository root as ``python -m examples.<name>``."""

__all__ = ["movielens"]
