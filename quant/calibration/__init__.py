"""Activation statistics of a model on real requests."""

__all__ = ["calibrate", "files", "statistics"]
