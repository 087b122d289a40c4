"""Timers and machine limits."""

__all__ = ["copy_rate", "free_memory", "gemm_graph", "interleave", "percentiles", "process_memory"]
