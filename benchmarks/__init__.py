"""Measurements behind the documentation; not part of the distribution."""

__all__: list[str] = []
