"""``ugsep validate``: check the gates of a bundle again."""

from __future__ import annotations

from pathlib import Path

import click

from engines.bundle.manifest import read_manifest
from engines.cli.group import SEED, echo_text
from engines.render.byte_sizes import parse_size
from engines.render.json_text import json_text
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import show_progress


@click.command("validate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--requests", type=click.Path(path_type=Path), multiple=True,
              help="Held-out requests (Parquet, Arrow, npz).")  # fmt: skip
@click.option("--synthetic", is_flag=True, help="Use random requests; checks parity and invariance, but not quality.")
@click.option("--seed", type=SEED, default=1, show_default=True, help="Seed for synthetic requests.")
@click.option("--worst", type=click.Path(path_type=Path),
              help="File for the worst rows if a gate fails  [default: BUNDLE.worst.npz]")  # fmt: skip
@click.option("--junit", type=click.Path(path_type=Path), help="Also write the checks to a JUnit XML file.")
@click.option("--time-limit", type=float, default=3600.0, show_default=True, metavar="SECONDS",
              help="End the checks after this time.")  # fmt: skip
@click.option("--memory-limit", metavar="SIZE", help="End checks that take more.  [default: 90 % of what is free]")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def validate_command(
    bundle: Path,
    requests: tuple[Path, ...],
    synthetic: bool,
    seed: int,
    worst: Path | None,
    junit: Path | None,
    time_limit: float,
    memory_limit: str | None,
    as_json: bool,
) -> None:
    """Check every gate of BUNDLE again: hashes, parity, AUC, invariance, latency.

    The graphs run in a process of their own: BUNDLE may come from anywhere.
    """
    from engines.verify.isolated.run import Limits, validate_isolated
    from engines.verify.validate import how_to_reproduce, junit_xml

    if bool(requests) == synthetic:
        raise UgsepError("pass either --requests FILE with held-out requests, or --synthetic")
    rows = worst or bundle.absolute().with_name(f"{bundle.absolute().name}.worst.npz")
    again = how_to_reproduce(bundle, requests, seed)
    limits = Limits(time_limit, parse_size(memory_limit) if memory_limit is not None else 0)
    read_manifest(bundle)  # what it is refused for needs no process
    with show_progress() as progress:
        found = validate_isolated(bundle, requests, seed, progress, rows, limits)
    if junit is not None:
        junit.write_text(junit_xml(bundle.name, found, again), encoding="utf-8")
    if as_json:
        click.echo(json_text({"passed": all(t.passed for t in found), "targets": [t.as_dict() for t in found]}))
    else:
        for check in found:
            echo_text(f"  {check}")
    broken = [str(t) for t in found if not t.passed]
    if broken:
        click.echo(f"reproduce: {again}", err=True)
        click.echo(f"worst rows: {rows}; to find the tensor: ugsep bisect {bundle} --requests {rows}", err=True)
        raise GateFailed(f"{bundle}: {'; '.join(broken)}")
