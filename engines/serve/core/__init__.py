"""Serving without a protocol: the queue, the workers, the bundle that serves and its successor."""

__all__ = ["job", "replay", "served_bundle"]
