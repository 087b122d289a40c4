"""Serving without a protocol: the queue, the workers, the bundle that serves and its successor."""

__all__ = ["assembly", "context", "job", "model_slot", "outcome", "replay", "served_bundle", "status"]
