"""Calls of the ranker with every kind of array: each answer right, or refused in a line, and none shares memory."""

__all__ = ["calls", "campaign", "features"]
