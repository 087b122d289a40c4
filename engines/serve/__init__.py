"""The serving runtime: no torch, no ONNX tooling."""

from engines.serve.ranker import Ranker

__all__ = ["Ranker"]
