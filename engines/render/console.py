"""Tables on stdout: as wide as the terminal, or unlimited if redirected to a file."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_FILE_COLUMNS = 200


def stdout_console() -> Console:
    """Return a console on stdout that prints text verbatim, without markup or highlighting."""
    width = None if sys.stdout.isatty() else _FILE_COLUMNS
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def print_table(table: Table) -> None:
    """Print a table."""
    stdout_console().print(table)
