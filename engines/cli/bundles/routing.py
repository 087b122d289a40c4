"""``ugsep routing``: compare the experts that engines choose with those of the FP32 graphs."""

from __future__ import annotations

from pathlib import Path

import click

from engines.cli.group import echo_text
from graphs.base.progress import show_progress


@click.command("routing")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--requests", type=click.Path(path_type=Path), required=True, help="Request file to route.")
def routing_command(bundle: Path, requests: Path) -> None:
    """Compare the experts that BUNDLE's engines and its FP32 graphs choose for each row, and the effect on scores."""
    from engines.verify.routing import compare_routing

    with show_progress() as progress:
        found = compare_routing(bundle, requests, progress)
    echo_text(str(found))
