"""Serving without a protocol: the queue, the workers, the bundle that serves and its successor."""

__all__ = ["job", "lifecycle", "misses", "model_slot", "outcome", "replay", "scheduler", "served_bundle"]
