"""Row rules: which axis of every tensor is the batch axis, op by op."""

from graphs.rows.layout import MixesRows, Rows
from graphs.rows.rules import has_rule, layout_of_call

__all__ = ["MixesRows", "Rows", "has_rule", "layout_of_call"]
