"""ONNX Runtime on NVIDIA GPUs."""

__all__ = ["backend"]
