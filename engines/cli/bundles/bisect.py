"""``ugsep bisect``: the first tensor where engines diverge from the FP32 graphs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from engines.cli.group import SEED, echo_text
from engines.render.json_text import json_text
from graphs.base.errors import GateFailed
from graphs.base.progress import show_progress


@click.command("bisect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--requests", type=click.Path(path_type=Path), multiple=True, help="Requests  [default: random rows]")
@click.option("--bound", type=float, help="Largest relative error  [default: 3 times that of the SQNR gate]")
@click.option("--backend", help="Check the engines of this backend instead of the serving ones.")
@click.option("--precision", help="Check the engines of this precision.")
@click.option("--seed", type=SEED, default=1, show_default=True, help="Seed for the random rows.")
@click.option("--json", "as_json", is_flag=True, help="Print all compared tensors as JSON.")
def bisect_command(
    bundle: Path,
    requests: tuple[Path, ...],
    bound: float | None,
    backend: str | None,
    precision: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Find the first tensor where BUNDLE's engines diverge from the FP32 graphs; exit with status 1 if found."""
    from engines.verify.bisect import bisect

    with show_progress() as progress:
        found = bisect(
            bundle, requests, bound, backend=backend, precision=precision, seed=seed, progress=progress
        )  # fmt: skip
    if as_json:
        click.echo(json_text([asdict(side) for side in found]))
    else:
        for side in found:
            echo_text(f"{side.side} ({side.engine}): {len(side.steps)} tensors compared, bound {side.bound:.3g}")
            echo_text(f"  worst: {side.worst}")
            if side.first is not None:
                echo_text(f"  first above the bound: {side.first}")
                echo_text(f"  computed from: {side.before if side.before is not None else 'the inputs'}")
    broken = [f"{side.side}: {side.first}, bound {side.bound:.3g}" for side in found if side.first is not None]
    if broken:
        raise GateFailed(f"{bundle}: {'; '.join(broken)}")
