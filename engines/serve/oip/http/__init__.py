"""The Open Inference Protocol over HTTP."""

__all__ = ["app", "codec", "direct"]
