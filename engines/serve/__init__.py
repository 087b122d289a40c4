"""The serving runtime, without torch or ONNX tooling."""

__all__ = ["ranker"]
