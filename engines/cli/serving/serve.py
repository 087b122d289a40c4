"""``ugsep serve``: a bundle behind the Open Inference Protocol, over HTTP and gRPC."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO

import click

from engines.cli.command_entry import missing_package
from engines.cli.group import as_typed
from engines.render.byte_sizes import parse_size
from engines.serve.settings import ServeSettings
from graphs.base.errors import UgsepError

PATH = click.Path(path_type=Path)


@click.command("serve")
@click.argument("bundle", type=PATH)
@click.option("--name", default="", help="The model's name for callers.  [default: the bundle's model]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: every IPv4 one.")
@click.option("--http-port", type=int, default=8000, show_default=True, help="Port for HTTP; 0: any free one.")
@click.option("--grpc-port", type=int, default=8001, show_default=True, help="Port for gRPC; 0: any free one.")
@click.option("--grpc/--no-grpc", "grpc", default=True, help="Serve gRPC too.  [default: grpc]")
@click.option("--backend", help="Serve with this backend's engines instead of the chosen ones.")
@click.option("--precision", help="Serve with engines of this precision instead of the chosen ones.")
@click.option("--workers", type=int, default=1, show_default=True, help="Threads that score.")
@click.option("--threads", type=int, help="Threads of one engine call.  [default: as pinned in the bundle]")
@click.option("--queue", type=int, default=64, show_default=True, help="Requests that may wait; more are refused.")
@click.option("--max-batch-delay", type=float, default=0.0, show_default=True, metavar="SECONDS",
              help="How long a worker may wait for more users to share an item call.")  # fmt: skip
@click.option("--request-timeout", type=float, default=0.0, show_default=True, metavar="SECONDS",
              help="Deadline of a request that brings none; 0: none.")  # fmt: skip
@click.option("--state-cache", default="64M", show_default=True, metavar="SIZE", help="Memory for user states.")
@click.option("--max-body", default="16M", show_default=True, metavar="SIZE", help="Largest request.")
@click.option("--body-timeout", type=float, default=10.0, show_default=True, metavar="SECONDS",
              help="Time for a client to send a request, or to take its answer.")  # fmt: skip
@click.option("--drain-seconds", type=float, default=5.0, show_default=True, metavar="SECONDS",
              help="After SIGTERM: 'not ready', but still serving.")  # fmt: skip
@click.option("--drain-limit", type=float, default=30.0, show_default=True, metavar="SECONDS",
              help="After that: the most that waiting and running requests may take.")  # fmt: skip
@click.option("--watch-seconds", type=float, default=2.0, show_default=True, metavar="SECONDS",
              help="How often to look for a new bundle at BUNDLE; 0: only on SIGHUP.")  # fmt: skip
@click.option("--record", type=PATH, help="Keep a share of the requests in this folder as Parquet.")
@click.option("--record-share", type=float, default=0.01, show_default=True, help="The share to keep, 0 to 1.")
@click.option("--record-limit", default="1G", show_default=True, metavar="SIZE", help="Most bytes of that folder.")
@click.option("--examples", type=PATH, help="Folder of examples for the page at /.")
@click.option("--slow-ms", type=float, default=0.0, show_default=True, help="Log requests that take longer; 0: none.")
@click.option("--log-json", is_flag=True, help="Write the log, and the line that says 'ready', as JSON.")
@click.option("--traces", is_flag=True, help="Export OpenTelemetry spans; OTEL_* variables say where to.")
@click.option("--digest", metavar="HEX",
              help="Serve no bundle but the one with this digest ('ugsep verify --print-digest').")  # fmt: skip
@click.option("--runtime-cache", type=PATH, help="Folder for kernels that a backend compiles while serving.")
@click.option("--admin-socket", type=PATH,
              help="Unix socket for 'ugsep rollback'.  [default: by port, in the user's runtime folder]")  # fmt: skip
@click.option("--haproxy", type=PATH, metavar="FILE",
              help="Write an HAProxy configuration for several replicas to FILE, whose folder is made if missing, "
                   "instead of serving.")  # fmt: skip
@click.option("--replicas", type=int, help="How many replicas --haproxy is for.  [default: 2]")
@click.pass_context
def serve_command(
    ctx: click.Context,
    /,
    bundle: Path,
    grpc: bool,
    grpc_port: int,
    state_cache: str,
    max_body: str,
    record_limit: str,
    haproxy: Path | None,
    replicas: int | None,
    **options: object,
) -> None:
    """Serve BUNDLE over HTTP and gRPC until SIGTERM; a new bundle at the same path is loaded and switched to.

    The page at / shows what is served and how fast; /metrics is for Prometheus.
    """
    try:
        from engines.serve.haproxy import write_haproxy
        from engines.serve.server import run
        from engines.serve.swap.admin_client import runtime_folder
    except ModuleNotFoundError as error:
        raise UgsepError(missing_package(error, "serve")) from error
    if replicas is not None and haproxy is None:
        raise UgsepError(
            "--replicas is for --haproxy FILE; the replicas themselves are servers without either option"
        )
    settings = ServeSettings(
        bundle=bundle,
        grpc_port=grpc_port if grpc else None,
        cache_bytes=parse_size(state_cache),
        max_body=parse_size(max_body),
        record_limit=parse_size(record_limit),
        runtime_folder=runtime_folder(os.environ),
        **options,  # type: ignore[arg-type]
    )
    if haproxy is not None:
        count = 2 if replicas is None else replicas
        command = as_typed(ctx, ("haproxy", "replicas", "host", "http_port", "grpc_port", "admin_socket"))
        start = write_haproxy(settings, command, haproxy, count)
        click.echo("\n".join([f"{haproxy}: start {count} replicas, then the proxy", *start]))
        return
    _fill_closed_streams()
    answered_all = run(settings, sys.stdout or io.StringIO(), sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        _empty(stream)
    if not answered_all:
        # Threads that were cut may be inside an engine, which must not be torn down under them.
        os._exit(0)


def _fill_closed_streams() -> None:
    """Open /dev/null as each standard stream that the caller closed; Python has None for it.

    Otherwise the next connection gets its number, and receives what a library prints.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(number)


def _empty(stream: TextIO | None) -> None:
    """Let go of what nobody reads any more: Python would end with status 120 because of it."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
