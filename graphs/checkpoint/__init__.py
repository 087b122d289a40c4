"""Checkpoints on disk: reading, writing and checking safetensors files."""

from graphs.checkpoint.files import stored_weights, weight_files
from graphs.checkpoint.weights import load_weights, save_weights

__all__ = ["load_weights", "save_weights", "stored_weights", "weight_files"]
