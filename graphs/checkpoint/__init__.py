"""Checkpoints on disk: safetensors files, read, written and checked."""
