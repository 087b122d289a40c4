"""TensorRT on NVIDIA data-center GPUs."""

__all__: list[str] = []
