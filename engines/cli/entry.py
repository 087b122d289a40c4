"""The console scripts: one-line errors if the packages of the ``build`` extra are missing."""

from __future__ import annotations

import importlib
import sys

__all__ = ["quant", "ugsep"]

_OURS = ("graphs", "export", "quant", "engines")


def ugsep() -> None:
    """Run ``ugsep``; exit with status 2 if the ``build`` extra is not installed."""
    _run("engines.cli.main")


def quant() -> None:
    """Run ``quant``; exit with status 2 if the ``build`` extra is not installed."""
    _run("engines.cli.quant.main")


def _run(module: str) -> None:
    try:
        command = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in _OURS:  # a bug in this project; installing something would not fix it
            raise
        print(f"error: this command requires package '{missing}'; run: pip install 'ugsep[build]'", file=sys.stderr)
        sys.exit(2)
    command()


if __name__ == "__main__":
    ugsep()
