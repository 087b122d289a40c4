"""The serving runtime and the server around it, without torch or ONNX tooling."""

__all__ = ["deadlines", "errors", "haproxy", "ranker", "score_request", "server", "settings"]
