"""Checkpoints on disk: reading, writing and checking safetensors files."""

__all__ = ["files", "header", "weights"]
