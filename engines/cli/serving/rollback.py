"""``ugsep rollback`` and ``ugsep reload``: change the bundle of a running server through its admin socket."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engines.serve.swap.admin_client import ask, runtime_folder, socket_in
from graphs.base.errors import UgsepError, printable_line


def _socket_options(command: Callable[..., None]) -> Callable[..., None]:
    port = click.option(
        "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The server's HTTP port."
    )
    socket = click.option(
        "--socket", "file", type=click.Path(path_type=Path), help="The server's --admin-socket, if it has one."
    )
    return port(socket(command))


@click.command("rollback")
@_socket_options
def rollback_command(port: int, file: Path | None) -> None:
    """Serve the previous bundle again, which a running 'ugsep serve' keeps in memory."""
    swap = ask(_socket(port, file), "POST /rollback")
    click.echo(
        f"rolled back from {swap['from']} to {swap['to']}; the path is left alone until another bundle is there"
    )


@click.command("reload")
@_socket_options
def reload_command(port: int, file: Path | None) -> None:
    """Load what lies at the path of a running 'ugsep serve' now; wait until it serves or is refused."""
    swap = ask(_socket(port, file), "POST /reload")
    if swap["outcome"] == "refused":
        raise UgsepError(f"refused, {swap['from']} serves on: {swap['reason']}")
    click.echo(_reloaded(swap))


def _reloaded(swap: dict[str, Any]) -> str:
    if swap["outcome"] == "unchanged":
        return "unchanged: the bundle at the path serves already"
    details = f": {swap['reason']}" if swap["reason"] else ""
    return printable_line(f"replaced {swap['from']} by {swap['to']} in {swap['seconds']:.1f} s{details}")


def _socket(port: int, file: Path | None) -> Path:
    return file if file is not None else socket_in(runtime_folder(os.environ), port)
