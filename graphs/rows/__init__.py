"""Row rules: how each op carries the batch axis."""

from graphs.rows.layout import MixesRows, Rows
from graphs.rows.rules import has_rule, layout_of_call

__all__ = ["MixesRows", "Rows", "has_rule", "layout_of_call"]
