"""TensorRT for RTX GPUs."""

__all__ = ["backend"]
