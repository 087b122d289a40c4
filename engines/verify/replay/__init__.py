"""Recorded requests scored again: one bundle against another, or against what was served."""

__all__ = ["page", "replay"]
