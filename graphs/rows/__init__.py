"""Row rules: how each op carries the batch axis."""

__all__ = ["layout", "rules", "sides"]
