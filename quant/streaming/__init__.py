"""Quantization of models larger than memory."""
