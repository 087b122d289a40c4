"""Weights that are read from a checkpoint only when a graph is written."""

from export.weights.lazy_weights import Constant, Weights, open_weights

__all__ = ["Constant", "Weights", "open_weights"]
