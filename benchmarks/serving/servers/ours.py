"""Our own servers as processes: one bundle, the whole model, and replicas behind HAProxy."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.serving.load.http_load import Address
from benchmarks.serving.servers.process import HOST, Server, free_ports
from engines.bundle.manifest import read_manifest
from engines.serve.haproxy import Proxy, Replica, haproxy_config, largest_request

_SERVE = ("-c", "from engines.cli.main import main; main()", "serve")
_WHOLE = ("-m", "benchmarks.serving.servers.whole_main")


def our_server(
    bundle: Path, work: Path, cores: Collection[int] = (), options: Sequence[str] = (), name: str = "ours"
) -> Server:
    """Return 'ugsep serve' on free ports, not started; ``options`` are its further options."""
    http, grpc = free_ports(2)
    # Nobody but the campaign asks, so that no load balancer needs the time; a later option overrides.
    return _served((*_SERVE, str(bundle), "--drain-seconds", "0"), http, grpc, work / f"{name}.log", cores, options)


def whole_server(
    bundle: Path, runtime: str, work: Path, cores: Collection[int] = (), options: Sequence[str] = ()
) -> Server:
    """Return the same server around the whole model in a runtime, not started."""
    http, grpc = free_ports(2)
    command = (*_WHOLE, str(bundle), runtime, str(work / "whole"))
    return _served(command, http, grpc, work / "whole.log", cores, options)


def _served(
    command: Sequence[str], http: int, grpc: int, log: Path, cores: Collection[int], options: Sequence[str]
) -> Server:
    ports = ("--http-port", str(http), "--grpc-port", str(grpc))
    socket = ("--admin-socket", str(log.with_suffix(f".{http}.sock").resolve()))
    full = (sys.executable, *command, *ports, *socket, *options)
    return Server(full, Address(HOST, http), Address(HOST, grpc), log, cores)


def proxy_for(replicas: Sequence[Server], bundle: Path, work: Path, cores: Collection[int] = ()) -> Server:
    """Return HAProxy in front of our servers, with the configuration that 'ugsep serve --haproxy' writes."""
    http, grpc = free_ports(2)
    proxy = Proxy(HOST, http, grpc, largest_request(read_manifest(bundle)))
    behind = [Replica(s.http.host, s.http.port, s.grpc.port if s.grpc else None) for s in replicas]
    work.mkdir(parents=True, exist_ok=True)
    file = work / "haproxy.cfg"
    file.write_text(haproxy_config(proxy, behind))
    command = ("haproxy", "-db", "-f", str(file))
    return Server(command, Address(HOST, http), Address(HOST, grpc), work / "haproxy.log", cores)
