"""``ugsep cache``: list, verify and prune the engine cache."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import click
from rich.table import Table

from engines.cli.group import CommandGroup
from engines.compile.cache import Entry, collect, default_root, list_entries
from engines.render.byte_sizes import parse_size, readable_bytes
from engines.render.console import print_table
from graphs.base.errors import GateFailed, UgsepError

_root = click.option(
    "--root", type=click.Path(path_type=Path), help="Cache directory  [default: engines in the user's cache]"
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the entries as JSON.")


@click.group("cache", cls=CommandGroup)
def cache_command() -> None:
    """List, verify and prune the engine cache."""


@cache_command.command("ls")
@_root
@_as_json
def ls_command(root: Path | None, as_json: bool) -> None:
    """List the cached engines, least recently used first."""
    folder = _folder(root)
    _show(folder, list_entries(folder), as_json)


@cache_command.command("gc")
@_root
@click.option(
    "--max-size", default="10G", show_default=True, help="Maximum size, e.g. 500M or 10G; 0 empties the cache."
)
@_as_json
def gc_command(root: Path | None, max_size: str, as_json: bool) -> None:
    """Remove damaged entries, then the least recently used engines until the cache fits --max-size.

    Also removes what killed commands left: unfinished builds in the cache, and folders of 'ugsep build', 'validate',
    'bench' and 'schemes' in the system's temporary folder. What a running command uses stays. Folders that a killed
    command left beside its result (.partial-*, .saving-*) are removed by the next one that writes there.
    """
    folder = _folder(root)
    removed = collect(folder, parse_size(max_size))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(e) for e in removed]))
        return
    left = sum(e.bytes for e in list_entries(folder))
    freed = readable_bytes(sum(e.bytes for e in removed))
    click.echo(f"{folder}: removed {len(removed)} engines, {freed}; {readable_bytes(left)} remain")


@cache_command.command("verify")
@_root
@_as_json
def verify_command(root: Path | None, as_json: bool) -> None:
    """Check every cached engine against its hashes; exit with status 1 if any is damaged."""
    folder = _folder(root)
    entries = list_entries(folder, verify=True)
    if as_json:
        _show(folder, entries, True)
    damaged = [e for e in entries if e.problem]
    if damaged:
        listed = "; ".join(e.problem for e in damaged[:3])
        raise GateFailed(
            f"{folder}: {len(damaged)} of {len(entries)} engines are damaged: {listed}; run 'ugsep cache gc'"
        )
    if not as_json:
        click.echo(f"{folder}: {len(entries)} engines match their manifests")


def _folder(root: Path | None) -> Path:
    if root is not None and not root.is_dir():
        raise UgsepError(f"--root: '{root}' is not a directory; omit it to use the default cache")
    return root or default_root(os.environ)


def _show(folder: Path, entries: list[Entry], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(e) for e in entries]))
        return
    table = Table("key", "side", "backend", "precision", "bytes", "last used", "problem")
    for e in entries:
        ago = f"{e.unused_seconds / 3600:.1f} h ago"
        table.add_row(e.key[:12], e.side, e.backend, e.precision, readable_bytes(e.bytes), ago, e.problem)
    print_table(table)
    click.echo(f"{folder}: {len(entries)} engines, {readable_bytes(sum(e.bytes for e in entries))}")
