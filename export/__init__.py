"""From a traced graph to a checked ONNX file: names, axes, opset, lowering, external data."""

__all__ = ["io", "lowering", "metadata", "names", "onnx_file", "streamed", "weights"]
