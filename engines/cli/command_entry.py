"""A row of the table of commands."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CommandEntry", "missing_package"]

_OURS = ("graphs", "export", "quant", "engines")


@dataclass(frozen=True)
class CommandEntry:
    """Where a command is: ``<name>_command`` of ``module``; its line in ``ugsep --help``; the extra that it needs."""

    module: str
    help: str
    extra: str = "build"


def missing_package(error: ModuleNotFoundError, extra: str) -> str:
    """Return the line that says how to install what a command misses.

    Raises:
        ModuleNotFoundError: the given one, if a module of this project is missing: a bug that installing cannot fix.
    """
    missing = (error.name or "").split(".")[0]
    if missing in _OURS:
        raise error
    return f"this command requires package '{missing}'; run: pip install 'ugsep[{extra}]'"
