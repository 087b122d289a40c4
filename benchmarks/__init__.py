"""Measurements behind the documentation; not part of the distribution."""

__all__ = ["experts", "score", "split", "streaming"]
