"""A command that takes as long as it is told."""

from __future__ import annotations

import time

import click


@click.command()
@click.argument("seconds", type=float)
def main(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)
