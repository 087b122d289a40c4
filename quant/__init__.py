"""Weight-only int8 on ONNX files: statistics, numerics, rewrite, sensitivity, search."""

__all__: list[str] = []
