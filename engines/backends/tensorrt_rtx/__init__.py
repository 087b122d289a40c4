"""TensorRT for RTX GPUs."""
