"""The serving runtime, without torch or ONNX tooling."""

from engines.serve.ranker import Ranker

__all__ = ["Ranker"]
