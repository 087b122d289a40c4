"""What a server tells about itself: metrics, a log, and the last two minutes."""

__all__ = ["latency_window", "log", "metrics"]
