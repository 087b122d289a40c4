"""The configuration of an HAProxy in front of several replicas of one server."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.backends.built_engine import TensorSpec
from engines.bundle.manifest import Manifest, engine_for, read_manifest
from engines.serve.settings import ServeSettings, address
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

__all__ = ["Proxy", "Replica", "haproxy_config", "largest_request", "replicas_of", "write_haproxy"]

#: Least and most bytes of HAProxy's buffer for a request. It holds a request whole, or it cannot send it again;
#: each connection takes two buffers.
_LEAST_BUFFER, _MOST_BUFFER = 128 << 10, 4 << 20
_HEADERS = 8 << 10  # bytes of a request besides its tensors
_MOST_REPLICAS = 256
_ANSWER_SECONDS = 30
_HOST = re.compile(r"[0-9A-Za-z._:-]+")
_EVERYWHERE = ("0.0.0.0", "::")
#: Percent of a replica's fair share of the running requests beyond which it passes users on, for each replica there
#: is, and at most. HAProxy's usual 150 spills at every short burst, because idle replicas have few slots: of 4
#: replicas at half load, 28 % of the requests left their replica, for a hit ratio of 0.86 of one cache as large as
#: all. 320 spills 2 % (0.98) at the p99 of 6 ms that 400, which never spills there, brings to 8 (simulated with
#: users by Zipf's law and requests of 1 ms).
_SPILL_PER_REPLICA, _SPILL_MOST = 80, 400


@dataclass(frozen=True)
class Replica:
    """One server behind the proxy; ``grpc_port`` is None if it does not speak gRPC."""

    host: str
    http_port: int
    grpc_port: int | None


@dataclass(frozen=True)
class Proxy:
    """Where the proxy listens, and what it is to know about its traffic.

    ``largest_request`` is in bytes; a longer one is passed on, but not sent again if its replica dies.
    ``answer_seconds`` is how long a replica may take to answer.
    """

    host: str
    http_port: int
    grpc_port: int | None
    largest_request: int
    answer_seconds: int = _ANSWER_SECONDS


def write_haproxy(settings: ServeSettings, command: str, file: Path, count: int) -> list[str]:
    """Write the configuration for replicas of a server; return the commands that start them, and then the proxy.

    The proxy takes the ports of the settings, the replicas those after them. ``command`` starts a server, apart from
    host and ports.

    Raises:
        UgsepError: no bundle, a port out of range or 0, a bad host, or a number of replicas out of range.
    """
    if settings.http_port == 0 or settings.grpc_port == 0:
        raise UgsepError("--haproxy needs ports that are known: give --http-port and --grpc-port, or --no-grpc")
    largest = min(largest_request(read_manifest(settings.bundle, settings.digest)), settings.max_body + _HEADERS)
    # As long as a drain may take, or longer if requests may: callers may also send timeouts above the default.
    seconds = max(_ANSWER_SECONDS, math.ceil(settings.request_timeout) + 1)
    proxy = Proxy(settings.host, settings.http_port, settings.grpc_port, largest, seconds)
    replicas = replicas_of(proxy, count)
    start = []
    for replica in replicas:
        own = ["--host", replica.host, "--http-port", str(replica.http_port)]
        own += ["--grpc-port", str(replica.grpc_port)] if replica.grpc_port is not None else []
        start.append(f"{command} {shlex.join(own)}")
    text = haproxy_config(proxy, replicas, start)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return [*start, f"haproxy -f {shlex.quote(str(file))}"]


def replicas_of(proxy: Proxy, count: int, step: int = 10) -> tuple[Replica, ...]:
    """Return ``count`` replicas on this machine, whose ports follow the proxy's in steps of ``step``.

    They listen on the proxy's address, or on the loopback if that is every address: callers go through the proxy.

    Raises:
        UgsepError: a number of replicas out of range, or a port beyond 65535 or of another listener.
    """
    if not 1 <= count <= _MOST_REPLICAS:
        raise UgsepError(f"{count} replicas; give 1 to {_MOST_REPLICAS}")
    host = "127.0.0.1" if proxy.host in _EVERYWHERE else proxy.host
    found = tuple(
        Replica(
            host,
            proxy.http_port + step * i,
            None if proxy.grpc_port is None else proxy.grpc_port + step * i,
        )
        for i in range(1, count + 1)
    )
    pairs = [(proxy.http_port, proxy.grpc_port), *((r.http_port, r.grpc_port) for r in found)]
    ports = [port for pair in pairs for port in pair if port is not None]
    if max(ports) > 65535:
        raise UgsepError(f"replica {count} would listen on port {max(ports)}; choose lower ports for the proxy")
    twice = next((port for port in ports if ports.count(port) > 1), None)
    if twice is not None:
        raise UgsepError(f"port {twice} would be taken twice; move --http-port and --grpc-port apart")
    return found


def largest_request(manifest: Manifest) -> int:
    """Return the bytes of the largest binary request that the bundle's engines take, headers included."""
    user, item = engine_for(manifest, "user").built, engine_for(manifest, "item").built
    states = {spec.name for spec in user.outputs}
    features = [spec for spec in item.inputs if spec.name not in states]
    users = max((p.users.max for p in item.profiles), default=1) if any(s.name == USER_INDEX for s in features) else 1
    # An engine without profiles has no limit; this is as much as a ranking stage usually scores.
    candidates = item.max_candidates or 1024
    return users * sum(map(_row_bytes, user.inputs)) + candidates * sum(map(_row_bytes, features)) + _HEADERS


def _row_bytes(spec: TensorSpec) -> int:
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    return np.dtype(spec.dtype).itemsize * int(np.prod(sizes, dtype=np.int64))


def haproxy_config(proxy: Proxy, replicas: Sequence[Replica], start: Sequence[str] = ()) -> str:
    """Return the text of ``haproxy.cfg``, for HAProxy 2.6 and newer.

    Args:
        proxy: where it listens.
        replicas: the servers behind it.
        start: the command that starts each replica, for the comment at the top.

    Raises:
        UgsepError: no replicas, a host that is neither a name nor an address, or a replica without the gRPC port that
            the proxy has.
    """
    if not replicas:
        raise UgsepError("no replicas; give at least one")
    for host in (proxy.host, *(r.host for r in replicas)):
        if not _HOST.fullmatch(host):
            raise UgsepError(f"host {host!r:.60} is neither a name nor an address")
    buffer = _LEAST_BUFFER
    while buffer < min(proxy.largest_request, _MOST_BUFFER):
        buffer *= 2
    comment = "".join(f"#   {' '.join(line.split())}\n" for line in start)
    text = _TEMPLATE.format(
        start=f"# Start the replicas, then the proxy:\n{comment}#   haproxy -f THIS_FILE\n" if start else "",
        buffer=buffer,
        answer=proxy.answer_seconds,
        spill=max(150, min(_SPILL_MOST, _SPILL_PER_REPLICA * len(replicas))),
        http=_listener(proxy, replicas, grpc=False),
        grpc=_listener(proxy, replicas, grpc=True) if proxy.grpc_port is not None else "",
    )
    return text.rstrip("\n") + "\n"


_TEMPLATE = """\
# HAProxy in front of replicas of 'ugsep serve'; written by 'ugsep serve --haproxy'.
{start}#
# The requests of a user go to one replica, whose cache then holds the user's state: send the user id as header (or
# gRPC metadata) 'x-user-key'. A request that its replica did not answer, because it died or is draining, is sent to
# another one. Status 429 (queue full) is passed on: sending it again would multiply the load.

global
    maxconn 4096
    # A request can only be sent again if one buffer holds all of it.
    tune.bufsize {buffer}

defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server {answer}s
    timeout http-keep-alive 60s
    timeout queue 1s
    balance hdr(x-user-key)
    # Consistent: a replica that comes or goes moves only its own users. Without the header, round robin.
    hash-type consistent sdbm avalanche
    # A replica with this percentage of its share of the running requests passes users on to the next one. Raise it
    # for a better hit ratio, lower it for a shorter tail.
    hash-balance-factor {spill}
    retries 5
    option redispatch 1
    # Only a request that came whole before it is passed on can be sent again. A slow caller holds no replica either.
    option http-buffer-request
    timeout http-request 10s
    # Scoring changes nothing, so that any request may be sent twice. A draining replica answers 503.
    retry-on conn-failure empty-response response-timeout junk-response 503
    option httpchk GET /v2/health/ready
    http-check expect status 200
    # A replica that is busy is not dead: a check may take longer than the time between two.
    timeout check 2s
    # Found draining within a second: well inside the 5 s that a replica serves on after SIGTERM. One that refuses
    # a connection is dead at once: it would look idle, and the bounded load would send everything there.
    default-server inter 500ms fastinter 200ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down

{http}
{grpc}"""


def _listener(proxy: Proxy, replicas: Sequence[Replica], *, grpc: bool) -> str:
    name, protocol = ("grpc", " proto h2") if grpc else ("http", "")
    port = proxy.grpc_port if grpc else proxy.http_port
    assert port is not None, "a proxy without gRPC has no section for it"
    lines = [
        f"frontend {name}",
        f"    bind {address(proxy.host, port)}{protocol}",
        f"    default_backend {name}-replicas",
        "",
        f"backend {name}-replicas",
    ]
    for number, replica in enumerate(replicas, 1):
        own = replica.grpc_port if grpc else replica.http_port
        if own is None:
            raise UgsepError(f"replica {number} has no gRPC port, but the proxy has one; give both or neither")
        # Health is asked over HTTP in both cases; the checks of HAProxy 2.6 speak no gRPC.
        check = f"check port {replica.http_port} check-proto h1" if grpc else "check"
        lines.append(f"    server replica{number} {address(replica.host, own)}{protocol} {check}")
    return "\n".join(lines) + "\n"
