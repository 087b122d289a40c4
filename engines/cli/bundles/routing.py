"""``ugsep routing``."""

from __future__ import annotations

from pathlib import Path

import click

from graphs.base.progress import show_progress


@click.command("routing")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--requests", type=click.Path(path_type=Path), required=True, help="Requests to route.")
def routing_command(bundle: Path, requests: Path) -> None:
    """Compare which experts BUNDLE's engines and its FP32 graphs choose, row by row, and what that moves."""
    from engines.verify.routing import compare_routing

    with show_progress() as progress:
        found = compare_routing(bundle, requests, progress)
    click.echo(str(found))
