"""Weights that are read from a checkpoint only when a graph is written."""

__all__ = ["direct_io", "lazy_weights", "placeholders"]
