"""A server as a process of its own, pinned to cores, ready when it says so, and ended in every case."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.serving.load.http_load import Address
from graphs.base.errors import UgsepError

HOST = "127.0.0.1"
READY = "/v2/health/ready"
START_SECONDS = 120.0


@dataclass
class Server:
    """A process that serves: where it listens, and where its output goes."""

    command: Sequence[str]
    http: Address
    grpc: Address | None
    log: Path
    cores: Collection[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, ready: str | None = READY, seconds: float = START_SECONDS) -> None:
        """Start it and wait until it answers 200 on the path ``ready``, or until it listens if that is None.

        Raises:
            UgsepError: it ended or did not get ready in time; the message has the last line of its log.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # Not with a function that runs after fork: in a process whose threads use gRPC, that crashes now and then.
        pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(self.cores)))] if self.cores else []
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*pinned, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,  # a Ctrl+C of the campaign is not the server's
            )
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise UgsepError(f"the server ended with status {self.process.returncode}: {self.last_line()}")
            if is_ready(self.http, ready):
                return
            time.sleep(0.05)
        self.end()
        raise UgsepError(f"the server was not ready after {seconds:.0f} s: {self.last_line()}")

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The process of a started server."""
        assert self.process is not None
        return self.process

    def last_line(self) -> str:
        """Return the last line that the server printed."""
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1][:300] if lines else "it printed nothing"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.running.send_signal(number)

    def end(self, seconds: float = 20.0) -> int:
        """End it, with SIGTERM and then with SIGKILL, and return its status."""
        process = self.running
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait()

    def kill(self) -> None:
        """End it as a crash would."""
        self.running.kill()
        self.running.wait()

    def resident(self) -> int:
        """Return the resident bytes of it and its children."""
        found = psutil.Process(self.running.pid)
        return sum(p.memory_info().rss for p in (found, *found.children(recursive=True)))

    def descriptors(self) -> int:
        """Return how many file descriptors it has open, without its callers' connections: those are the callers'.

        Only what is open throughout counts, so that connections that come and go meanwhile are not taken for leaks.
        """
        process = psutil.Process(self.running.pid)
        before = _descriptors(process.pid)
        connections = {c.fd for c in process.net_connections("inet") if c.status != psutil.CONN_LISTEN}
        return sum(fd not in connections for fd, _ in before & _descriptors(process.pid))


def _descriptors(pid: int) -> set[tuple[int, str]]:
    """Return the open descriptors of a process and what they are of; psutil knows only files and sockets."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add((int(link.name), str(link.readlink())))
    return found


@contextmanager
def started(server: Server, ready: str | None = READY, seconds: float = START_SECONDS) -> Iterator[Server]:
    """Start a server; on exit it is ended."""
    try:
        server.start(ready, seconds)
        yield server
    finally:
        if server.process is not None:
            server.end()


def is_ready(address: Address, path: str | None = READY) -> bool:
    """Tell whether a server answers 200 on a path, or listens at all if the path is None."""
    try:
        if path is None:
            socket.create_connection((address.host, address.port), timeout=1).close()
            return True
        return get(address, path)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def get(address: Address, path: str) -> tuple[int, bytes]:
    """Return status and body of a GET.

    Raises:
        OSError, http.client.HTTPException: nobody answers.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with _many([socket.socket() for _ in range(count)]) as probes:
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextmanager
def _many(sockets: list[socket.socket]) -> Iterator[list[socket.socket]]:
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll a condition.

    Raises:
        UgsepError: it did not hold in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise UgsepError(f"{what} within {seconds:.0f} s did not happen")
        time.sleep(0.02)
