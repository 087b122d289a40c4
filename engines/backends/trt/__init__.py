"""What both TensorRT backends share: plans, the build worker, the runner, the W8A16 kernel."""

__all__ = ["gpu", "load", "plan", "worker"]
