"""Row rules: how each op carries the batch axis."""

__all__ = ["layout", "row_values", "rules", "sides"]
