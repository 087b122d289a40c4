"""Run commands in forks of a process that has everything imported, so that a try costs no imports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reliability.children.order import Order
from graphs.base.errors import UgsepError

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, or minus a signal; what it wrote; whether its time was over."""

    status: int
    stdout: str
    stderr: str
    late: bool = False
    seconds: float = 0.0

    @property
    def last_line(self) -> str:
        """The last line on stderr."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass
class Children:
    """The fork server and the processes it runs; see ``started``."""

    server: subprocess.Popen[str]
    running: dict[int, tuple[Order, float]] = field(default_factory=dict)

    def start(self, order: Order) -> int:
        """Start a command in a process group of its own and return its process id."""
        pid = int(self._ask(order.to_line()))
        self.running[pid] = order, time.monotonic()
        return pid

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a command's process group, if there still is one."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)

    def kill_later(self, pid: int, seconds: float, number: int = signal.SIGKILL) -> None:
        """Send a signal to a command's process group after a time, unless it was waited for by then."""

        def send() -> None:
            if pid in self.running:
                self.kill(pid, number)

        timer = threading.Timer(seconds, send)
        timer.daemon = True
        timer.start()

    def wait(self, pid: int, seconds: float = 120.0) -> Ended:
        """Wait until a command ends; after ``seconds`` its group is killed and the result is ``late``."""
        late = threading.Event()

        def over() -> None:
            late.set()
            self.kill(pid)

        timer = threading.Timer(seconds, over)
        timer.daemon = True
        timer.start()
        try:
            status = int(self._ask(json.dumps({"wait": pid})))
        finally:
            timer.cancel()
        order, began = self.running.pop(pid)
        stderr = order.output.with_name(f"{order.output.name}.err")
        return Ended(status, _text(order.output), _text(stderr), late.is_set(), time.monotonic() - began)

    def run(self, order: Order, seconds: float = 120.0) -> Ended:
        """Start a command and wait for it."""
        return self.wait(self.start(order), seconds)

    def _ask(self, line: str) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline().strip()
        if not answer:
            raise UgsepError("the process that forks commands ended; see its traceback above")
        return answer


@contextmanager
def started() -> Iterator[Children]:
    """Yield a fork server; in the end what it still runs is killed.

    Raises:
        UgsepError: it does not start.
    """
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg", "ORT_DISABLE_TELEMETRY": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.reliability.children.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, **quiet},
        start_new_session=True,  # Ctrl-C is for the campaign
    )
    children = Children(server)
    try:
        assert server.stdout is not None
        if server.stdout.readline().strip() != "ready":
            raise UgsepError("the process that forks commands does not start; see its traceback above")
        yield children
    finally:
        for pid in list(children.running):
            children.kill(pid)
        server.kill()
        server.wait()
        for stream in (server.stdin, server.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""
