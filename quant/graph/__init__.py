"""ONNX graphs as quantization sees them: GEMMs, their weights, and the rewritten files."""

from quant.graph.gemms import Weight, load_graph, weights_of

__all__ = ["Weight", "load_graph", "weights_of"]
