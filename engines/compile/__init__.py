"""From an ONNX file to an engine, through the engine cache."""

__all__ = ["cache", "compile"]
