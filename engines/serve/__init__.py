"""The serving runtime and the server around it, without torch or ONNX tooling."""

__all__ = ["errors", "ranker", "score_request", "settings"]
