"""From a PyTorch module to a traced graph with one symbolic batch dimension."""

__all__ = ["call", "factory", "frozen", "node_location", "trace", "trace_errors", "widen"]
