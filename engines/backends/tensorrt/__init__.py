"""TensorRT on NVIDIA data-center GPUs."""
