"""Timers and machine limits."""

__all__ = ["copy_rate", "gemm_graph", "interleave", "percentiles", "process_memory"]
