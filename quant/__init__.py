"""Weight-only int8 on ONNX files: statistics, numerics, rewrite, sensitivity, search."""
