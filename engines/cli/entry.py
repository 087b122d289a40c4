"""The console scripts: one-line errors if the packages of an extra are missing."""

from __future__ import annotations

import importlib
import os
import sys

from engines.cli.aborted import exit_aborted, importing
from engines.cli.command_entry import missing_package
from engines.cli.commands import COMMANDS

__all__ = ["quant", "ugsep"]


def ugsep() -> None:
    """Run ``ugsep``; exit with status 2 if the packages of the command's extra are not installed."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    _run("engines.cli.main", COMMANDS[name].extra if name in COMMANDS else "build")


def quant() -> None:
    """Run ``quant``; exit with status 2 if the ``build`` extra is not installed."""
    _run("engines.cli.quant.main", "build")


def _run(module: str, extra: str) -> None:
    _open_closed_streams()
    try:
        try:
            with importing():
                command = importlib.import_module(module).main
        except ModuleNotFoundError as error:
            print(f"error: {missing_package(error, extra)}", file=sys.stderr)
            sys.exit(2)
        command()
    except KeyboardInterrupt:  # during the imports, which take a second: click answers later ones
        exit_aborted()


def _open_closed_streams() -> None:
    """Point the standard streams that the caller closed to /dev/null; Python has None for them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # takes the number of the closed one, which is the lowest


if __name__ == "__main__":
    ugsep()
