"""ONNX graphs as quantization sees them: GEMMs, their weights, and the rewritten files."""
