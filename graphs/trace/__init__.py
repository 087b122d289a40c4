"""From a PyTorch module to a traced graph with one symbolic batch dimension."""

from graphs.trace.factory import load_factory
from graphs.trace.trace import Traced, trace

__all__ = ["Traced", "load_factory", "trace"]
