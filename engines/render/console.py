"""Text and tables on stdout: as wide as the terminal, or unlimited if redirected to a file."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from graphs.base.errors import printable_text

_FILE_COLUMNS = 200


class _PlainConsole(Console):
    """A console to which every string is data: neither markup nor emoji codes nor escape sequences."""

    def render_str(self, text: str, **style: Any) -> Text:
        """Return a string as text, what could control the terminal escaped."""
        return super().render_str(printable_text(text), **style)


def stdout_console(**settings: Any) -> Console:
    """Return a console on stdout that prints strings verbatim, if they can be printed; ``settings`` are rich's."""
    width = None if sys.stdout.isatty() else _FILE_COLUMNS
    return _PlainConsole(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False, **settings)


def print_table(table: Table) -> None:
    """Print a table."""
    stdout_console().print(table)
