"""A server killed while it switches to another bundle."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.children.client import Children, is_alive
from benchmarks.reliability.children.order import Order, Trap
from benchmarks.reliability.children.traps import counted
from benchmarks.reliability.contract import Outcome
from benchmarks.reliability.kill.trees import difference, tree
from benchmarks.serving.load.http_load import Address
from benchmarks.serving.load.one_by_one import HttpClient
from benchmarks.serving.load.pool import Pool, bundle_version, make_pool
from benchmarks.serving.load.tally import Tally
from benchmarks.serving.load.wire import http_outputs
from benchmarks.serving.servers.process import HOST, free_ports, is_ready
from engines.bundle.publish import publish
from graphs.base.errors import UgsepError, printable_line

_SECONDS = 90.0


@dataclass(frozen=True)
class Swap:
    """Two bundles with reference scores, and the file operations and seconds of a switch that is not killed."""

    old: Path
    new: Path
    pool: Pool
    operations: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def measured_swap(children: Children, old: Path, new: Path, folder: Path) -> Swap:
    """Score requests with both bundles, and switch a server from one to the other.

    Raises:
        UgsepError: the server does not start, or does not switch.
    """
    swap = Swap(old, new, make_pool([old, new], 2, 5))
    _laid_out(swap, folder, as_link=False)
    with_trap = _Running(children, folder, free_ports(1)[0])
    try:
        with_trap.wait_ready()
        first, began = counted(with_trap.counter), time.monotonic()
        _replace(swap, folder)
        if problem := with_trap.answers_until(swap, bundle_version(new)):
            raise UgsepError(f"a switch without a kill: {problem}")
        return Swap(old, new, swap.pool, (first, counted(with_trap.counter)), time.monotonic() - began)
    finally:
        with_trap.end()


def killed_swap(children: Children, swap: Swap, folder: Path, name: str, rng: random.Random) -> Outcome:
    """Kill a server while it switches; start it again, and end it."""
    _laid_out(swap, folder, as_link=rng.random() < 0.5)
    by_operation = rng.random() < 0.6
    operation = rng.randint(swap.operations[0] + 1, swap.operations[1] + 1) if by_operation else 0
    delay = rng.random() * 1.2 * swap.seconds
    how = "at a file operation" if by_operation else "at a moment"
    port = free_ports(1)[0]  # the same after the restart, whose socket for the administrator is then in the way
    running = _Running(children, folder, port, operation)
    try:
        running.wait_ready()
        _replace(swap, folder)
        if not by_operation:
            children.kill_later(running.pid, delay)
        problem = running.answers_until(swap, bundle_version(swap.new))
        status = running.end(signal.SIGKILL)
        measures = {"kills": float(status == -signal.SIGKILL)}
        if problem and problem != _GONE:
            return Outcome(name, "defect", "a wrong answer", problem, measures)
        running = _Running(children, folder, port)
        running.wait_ready()
        if problem := running.answers_until(swap, bundle_version(swap.new)):
            return Outcome(name, "defect", "a wrong answer after the restart", problem, measures)
        status = running.end()
    except UgsepError as error:
        return Outcome(name, "defect", "does not start", printable_line(str(error)))
    finally:
        running.end(signal.SIGKILL)
    if status:
        return Outcome(name, "defect", "ends with a status", f"{status}: {running.last_line}", measures)
    left = {path: kind for path, kind in tree(folder).items() if path.split("/")[0] in ("run", "tmp")}
    if problem := difference(left, {"run": "folder", "run/ugsep": "folder", "tmp": "folder"}):
        return Outcome(name, "defect", "left over", problem, measures)
    return Outcome(name, "ok", how, measures=measures)


_GONE = "the server is gone"


def _laid_out(swap: Swap, folder: Path, as_link: bool) -> None:
    """Put the old bundle where the server looks, as a folder or behind a link."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("run", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(swap.old, folder / ("first" if as_link else "current"))
    if as_link:
        (folder / "current").symlink_to("first")


def _replace(swap: Swap, folder: Path) -> None:
    """Put the new bundle there, as a deployment or a build does."""
    current = folder / "current"
    if current.is_symlink():
        shutil.copytree(swap.new, folder / "second")
        (folder / "next").symlink_to("second")
        os.replace(folder / "next", current)
        return
    with publish(current) as work:
        shutil.copytree(swap.new, work, dirs_exist_ok=True)


class _Running:
    """A server in a fork."""

    def __init__(self, children: Children, folder: Path, port: int, operation: int = 0) -> None:
        self._children = children
        self.output = folder.with_name(f"{folder.name}.out")
        self.output.mkdir(exist_ok=True)
        self.counter = self.output / "serve.count"
        self.address = Address(HOST, port)
        listen = ("--http-port", str(self.address.port), "--no-grpc")
        argv = ("ugsep", "serve", "current", *listen, "--watch-seconds", "0.05", "--drain-seconds", "0")
        environ = {"TMPDIR": str(folder / "tmp"), "XDG_RUNTIME_DIR": str(folder / "run")}
        trap = Trap(folder, self.counter, operation)
        self.pid = children.start(Order(argv, folder, self.output / "serve", environ, trap=trap))
        self.last_line = ""
        self._status: int | None = None

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            UgsepError: it ended, or takes too long.
        """
        until = time.monotonic() + _SECONDS
        while not is_ready(self.address):
            if time.monotonic() > until or not is_alive(self.pid):
                self.end(signal.SIGKILL)
                raise UgsepError(f"the server is not ready: {self.last_line}")
            time.sleep(0.02)

    def answers_until(self, swap: Swap, version: str) -> str:
        """Ask until the server answers for a version; return "", ``_GONE``, or what was wrong."""
        tally, until, number = Tally(swap.pool), time.monotonic() + _SECONDS, 0
        while time.monotonic() < until:
            entry = swap.pool.entries[number % len(swap.pool.entries)]
            number += 1
            try:
                with HttpClient(self.address) as client:
                    status, head, body = client.ask(entry.http)
            except (OSError, UgsepError):
                return _GONE
            if status != 200:
                return f"status {status}: {body[:200].decode('utf-8', 'replace')}"
            found, outputs = http_outputs(head, body)
            tally.check(entry, found, outputs)
            if tally.wrong:
                return tally.messages[0]
            if found == version:
                return ""
        return f"no answer of version {version} within {_SECONDS:.0f} s"

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal, once, and return its status."""
        if self._status is None:
            self._children.kill(self.pid, number)
            ended = self._children.wait(self.pid, _SECONDS)
            self._status, self.last_line = ended.status, ended.last_line
        return self._status
