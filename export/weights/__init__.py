"""Weights that are read from a checkpoint only when a graph is written."""
