"""Row rules: how each op carries the batch axis."""

__all__ = ["layout", "reach", "row_values", "rules", "sides"]
