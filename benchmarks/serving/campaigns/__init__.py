"""The campaigns: what is sent to a server, and the bounds that its answers must keep."""

__all__ = ["batching", "bench", "capacity", "latency", "overhead", "overload", "replicas", "soak", "swaps"]
