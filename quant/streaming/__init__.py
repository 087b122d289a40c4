"""Quantization of models larger than memory."""

__all__ = ["stream"]
