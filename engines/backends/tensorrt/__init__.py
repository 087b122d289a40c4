"""TensorRT on NVIDIA data-center GPUs."""

__all__ = ["backend"]
