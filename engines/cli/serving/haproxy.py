"""``ugsep serve --haproxy``: a proxy for several replicas, and how to start them."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from engines.bundle.manifest import read_manifest
from engines.cli.group import as_typed
from engines.serve.haproxy import Proxy, haproxy_config, largest_request, replicas_of
from engines.serve.settings import ServeSettings
from graphs.base.errors import UgsepError

__all__ = ["write_haproxy"]

#: Options of the command that a replica does not take as they were given: they differ between replicas.
_OF_THE_PROXY = ("haproxy", "replicas", "host", "http_port", "grpc_port", "admin_socket")


def write_haproxy(ctx: click.Context, settings: ServeSettings, file: Path, count: int) -> None:
    """Write the configuration, and print how to start the replicas and the proxy.

    The proxy takes the ports of the settings, the replicas those after them.

    Raises:
        UgsepError: no bundle, a port out of range or 0, or a number of replicas out of range.
    """
    if settings.http_port == 0 or settings.grpc_port == 0:
        raise UgsepError("--haproxy needs ports that are known: give --http-port and --grpc-port, or --no-grpc")
    largest = min(largest_request(read_manifest(settings.bundle)), settings.max_body)
    proxy = Proxy(settings.host, settings.http_port, settings.grpc_port, largest, _answer_seconds(settings))
    replicas = replicas_of(proxy, count)
    command = as_typed(ctx, _OF_THE_PROXY)
    start = []
    for replica in replicas:
        own = ["--host", replica.host, "--http-port", str(replica.http_port)]
        own += ["--grpc-port", str(replica.grpc_port)] if replica.grpc_port is not None else []
        start.append(f"{command} {shlex.join(own)}")
    text = haproxy_config(proxy, replicas, start)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    for line in (f"{file}: start {count} replicas, then the proxy", *start, f"haproxy -f {shlex.quote(str(file))}"):
        click.echo(line)


def _answer_seconds(settings: ServeSettings) -> int:
    """Return how long the proxy waits for an answer: a second longer than a request's own deadline, if it has one."""
    return max(1, round(settings.request_timeout) + 1) if settings.request_timeout else 30
