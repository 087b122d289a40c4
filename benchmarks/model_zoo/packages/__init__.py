"""Ranking models of other packages, one file per package."""

__all__ = ["inputs", "table"]
