"""From a traced graph to a checked ONNX file: names, axes, opset, lowering, external data."""

__all__: list[str] = []
