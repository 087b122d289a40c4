"""What each weight costs in accuracy, and the policy that keeps the gate."""

__all__ = ["gemm_latency", "metrics", "search", "sensitivity"]
