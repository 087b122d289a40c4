"""ONNX graphs as quantization sees them: GEMMs, their weights, and the rewritten files."""

__all__ = ["files", "fp16_view", "gemms", "rewrite"]
