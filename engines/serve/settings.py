"""The settings of a server, as ``ugsep serve`` takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from graphs.base.errors import UgsepError

__all__ = ["ServeSettings", "address"]

MIB = 1 << 20
_NAME = re.compile(r"[\w.-]*")  # shown in URLs, logs and labels of metrics as it is


@dataclass(frozen=True)
class ServeSettings:
    """How a bundle is served.

    Ports of 0 mean any free one, ``grpc_port`` of None no gRPC. ``queue`` is the number of requests that may wait,
    ``workers`` the threads that score, ``threads`` the intra-op threads of an engine call (None: as pinned in the
    bundle). ``max_batch_delay`` (seconds) is how long a worker may wait for more users to share an item call;
    ``request_timeout`` (seconds) the deadline of a request that brings none, 0 for none. ``drain_seconds`` is the
    time between 'not ready' and the end of accepting, ``drain_limit`` the most that running requests may then take.
    ``watch_seconds`` is how often the bundle's path is looked at, 0 for only on SIGHUP. ``slow_ms`` logs requests
    above it, 0 logs none. ``record_limit`` is the most bytes that the files in ``record`` may take. ``admin_socket``
    is the Unix socket for 'ugsep rollback' and 'ugsep reload'; without it, one named by the HTTP port in
    ``runtime_folder``, the user's folder for sockets; without both, there is none. ``digest`` pins the bundle: any
    other at the path is refused, also later.

    Raises:
        UgsepError: a value out of range, or a name that no URL could hold.
    """

    bundle: Path
    name: str = ""
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    backend: str | None = None
    precision: str | None = None
    workers: int = 1
    threads: int | None = None
    queue: int = 64
    cache_bytes: int = 64 * MIB
    max_body: int = 16 * MIB
    body_timeout: float = 10.0
    max_batch_delay: float = 0.0
    request_timeout: float = 0.0
    drain_seconds: float = 5.0
    drain_limit: float = 30.0
    watch_seconds: float = 2.0
    record: Path | None = None
    record_share: float = 0.01
    record_limit: int = 1 << 30
    examples: Path | None = None
    log_json: bool = False
    slow_ms: float = 0.0
    traces: bool = False
    runtime_cache: Path | None = None
    admin_socket: Path | None = None
    runtime_folder: Path | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, float, float, float], ...] = (
            ("http_port", self.http_port, 0, 65535),
            ("grpc_port", self.grpc_port or 0, 0, 65535),
            ("workers", self.workers, 1, 1024),
            ("threads", 1 if self.threads is None else self.threads, 1, 4096),
            ("queue", self.queue, 1, 1 << 20),
            ("cache_bytes", self.cache_bytes, 0, 1 << 50),
            ("max_body", self.max_body, 1, 1 << 31),
            ("body_timeout", self.body_timeout, 0.01, 3600),
            ("max_batch_delay", self.max_batch_delay, 0, 1),
            ("request_timeout", self.request_timeout, 0, 3600),
            ("drain_seconds", self.drain_seconds, 0, 3600),
            ("drain_limit", self.drain_limit, 0, 3600),
            ("watch_seconds", self.watch_seconds, 0, 3600),
            ("record_share", self.record_share, 0, 1),
            ("record_limit", self.record_limit, 1, 1 << 50),
            ("slow_ms", self.slow_ms, 0, 3600e3),
        )
        for name, value, least, most in ranges:
            if not least <= value <= most:  # also refuses NaN
                raise UgsepError(f"{name} is {_plain(value)}; it must be from {_plain(least)} to {_plain(most)}")
        if not _NAME.fullmatch(self.name) or self.name in (".", ".."):
            raise UgsepError(f"name is {self.name!a}; it is a part of URLs: use letters, digits and - . _")


def _plain(value: float) -> str:
    """Return a number without an exponent, if it is a whole one."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else f"{value:g}"


def address(host: str, port: int) -> str:
    """Return host and port as one text, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
