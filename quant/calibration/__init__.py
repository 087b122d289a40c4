"""Activation statistics of a model on real requests."""
