"""Measurements behind the documentation; not part of the distribution."""

__all__ = ["experts", "model_zoo", "score", "split", "streaming"]
