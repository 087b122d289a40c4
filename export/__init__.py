"""From a traced graph to a checked ONNX file: names, axes, opset, lowering, external data."""

__all__ = ["activations", "io", "lowering", "metadata", "names", "onnx_file", "streamed", "weights"]
