"""Recipes: what to build, how to quantize it, and which gates it must pass."""

__all__ = ["recipe"]
