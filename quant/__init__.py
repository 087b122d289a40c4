"""Weight-only int8 on ONNX files: statistics, numerics, rewrite, sensitivity, search."""

__all__ = [
    "arrays",
    "calibration",
    "graph",
    "inspect",
    "policy",
    "requests",
    "schemes",
    "search",
    "streaming",
    "weight_plan",
    "weight_table",
    "weights",
]
