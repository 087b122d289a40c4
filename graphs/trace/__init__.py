"""From a PyTorch module to a traced graph with one symbolic batch dimension."""

__all__ = ["factory", "frozen", "node_location", "trace", "widen"]
