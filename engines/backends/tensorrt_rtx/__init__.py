"""TensorRT for RTX GPUs."""

__all__: list[str] = []
