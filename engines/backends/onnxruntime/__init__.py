"""ONNX Runtime on CPUs."""

__all__: list[str] = []
