"""Run the checks of a bundle in a process of its own, so that a graph that ends or blocks it becomes one line."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engines.measure.free_memory import free_bytes
from engines.verify.checks import Check
from graphs.base.errors import GateFailed, UgsepError, printable_line
from graphs.base.json_text import read_json
from graphs.base.progress import Progress, ProgressCallback, silent

__all__ = ["Limits", "validate_isolated"]

_FIX = "do not use this bundle, or build it again"
_LOOK_SECONDS = 0.1
_MAX_ANSWER = 16 << 20  # bytes that the process may write


@dataclass(frozen=True)
class Limits:
    """What the process may take: seconds, and bytes of resident memory (0: nine tenths of what is free now).

    Raises:
        UgsepError: a number out of range.
    """

    seconds: float = 3600.0
    memory: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= 1e6 or not 0 <= self.memory <= 1 << 50:
            raise UgsepError(
                f"limits of {self.seconds:g} s and {self.memory} bytes are out of range; give 1 to 1000000 seconds "
                "and at most 1 PiB"
            )


class _Traceback(Exception):
    """What went wrong inside the process, for ``--debug``."""


def validate_isolated(
    bundle: Path,
    requests: Sequence[Path],
    seed: int = 1,
    progress: ProgressCallback = silent,
    worst: Path | None = None,
    limits: Limits = Limits(),
) -> list[Check]:
    """Return the checks of ``validate``, run in another process; the arguments are the same.

    Raises:
        UgsepError: as ``validate``; or the process crashed, or passed a limit and was ended.
        GateFailed: as ``validate``.
    """
    job = {
        "bundle": str(bundle),
        "requests": [str(path) for path in requests],
        "seed": seed,
        "worst": None if worst is None else str(worst),
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # -P: do not import from a folder named 'engines' in the user's working directory.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "engines.verify.isolated.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries log there what their errors say again
        env=environment,
    ) as process:
        try:
            _send(process, job)
            for message in _messages(process, bundle, limits):
                if "progress" in message:
                    progress(Progress(*message["progress"]))
                else:
                    return _outcome(message)
            with suppress(subprocess.TimeoutExpired):  # it let go of its output and hangs: ended below
                process.wait(10)
        finally:
            process.kill()
    raise UgsepError(f"{bundle}: its graphs {_ended(process.returncode)}; {_FIX}")


def _send(process: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
    except BrokenPipeError:
        return  # it ended already: its status says why


def _messages(process: subprocess.Popen[bytes], bundle: Path, limits: Limits) -> Iterator[dict[str, Any]]:
    """Yield what the process says, line by line, until it ends.

    Raises:
        UgsepError: it passed a limit.
    """
    assert process.stdout is not None
    memory = limits.memory or int(free_bytes() * 0.9)
    deadline = time.monotonic() + limits.seconds
    held, total = b"", 0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_LOOK_SECONDS):
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                total += len(chunk)
                if not chunk:
                    return
                *lines, held = (held + chunk).split(b"\n")
                yield from (read_json(line, f"{bundle}: the outcome of its checks", _FIX) for line in lines)
            if time.monotonic() > deadline:
                raise UgsepError(
                    f"{bundle}: its checks took more than {limits.seconds:g} s; raise --time-limit, or {_FIX}"
                )
            if _own_bytes(process.pid) > memory:
                took = f"its checks took more than {memory >> 20} MiB of memory"
                raise UgsepError(f"{bundle}: {took}; raise --memory-limit, or {_FIX}")
            if total > _MAX_ANSWER:
                raise UgsepError(f"{bundle}: its checks wrote more than {_MAX_ANSWER} bytes; {_FIX}")


def _own_bytes(pid: int) -> int:
    """Return the resident memory of a process without the pages of mapped files, which the system can take back."""
    try:
        found = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(found.rss - getattr(found, "shared", 0))


def _outcome(message: dict[str, Any]) -> list[Check]:
    if "failed" in message:
        raise GateFailed(printable_line(message["failed"]))
    if "error" in message:
        cause = _Traceback(message["traceback"])
        raise UgsepError(printable_line(message["error"])) from cause
    return [
        Check(name, float.fromhex(value), float.fromhex(bound), relation)
        for name, value, bound, relation in message["checks"]
    ]


def _ended(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended the process that checked them with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"crashed the runtime that checked them ({name})"
