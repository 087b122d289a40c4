"""Ops that the ONNX exporter or ONNX Runtime would compute otherwise than PyTorch does, written with others."""

__all__ = ["table"]
