"""A bundle measured against other ways to serve the same model."""

__all__ = ["gemm_latency", "machine", "page", "result", "run"]
