"""ONNX Runtime on CPUs."""

__all__ = ["backend", "session", "variants", "weight_status"]
