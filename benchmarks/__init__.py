"""Measurements behind the documentation; not part of the distribution."""
