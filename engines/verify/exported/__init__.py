"""The exported FP32 graphs against the PyTorch graphs they were written from."""

__all__ = ["check", "kernels"]
