"""The console scripts: without the packages of the extra ``build`` they end with one line."""

from __future__ import annotations

import importlib
import sys

__all__ = ["quant", "ugsep"]

_OURS = ("graphs", "export", "quant", "engines")


def ugsep() -> None:
    """Run the command ``ugsep``; exit status 2 if the extra ``build`` is not installed."""
    _run("engines.cli.main")


def quant() -> None:
    """Run the command ``quant``; exit status 2 if the extra ``build`` is not installed."""
    _run("engines.cli.quant.main")


def _run(module: str) -> None:
    try:
        command = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in _OURS:  # a defect of ours, not something to install
            raise
        print(f"error: this command needs the package '{missing}'; pip install 'ugsep[build]'", file=sys.stderr)
        sys.exit(2)
    command()
