"""The end of a command after Ctrl-C: a line, and status 130."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["exit_aborted"]


def exit_aborted() -> NoReturn:
    """Say that the command was aborted and exit with status 130.

    CPython remembers a KeyboardInterrupt that left an ``exec`` of text, which dataclasses and named tuples are made
    by while modules are imported, and ends ``python -m`` by the signal even if the exception was caught. The next
    ``exec`` makes it forget.
    """
    print("aborted", file=sys.stderr)
    exec("")
    sys.exit(130)
