"""Run commands in a forked child that has everything imported, under limits, and see how each ends."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import pickle
import resource
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

from benchmarks.reliability.fuzz.patience import Patience

__all__ = ["Ended", "Program", "Worker"]

#: What a child runs by name: it gets the arguments, and prints and exits as a command does.
Program = Callable[[Sequence[str]], object]
RUNS = 50  # of one child: what a run leaves in memory does not add up
MEMORY = 3 << 30  # bytes that a child may allocate on top of what it was forked with
FILE_BYTES = 1 << 30
_LOOK = 0.2  # seconds between two looks at a run


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, minus the signal if it was killed, None if it hung."""

    status: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


class Worker:
    """A child process, forked when first needed and again after ``RUNS`` runs, a crash or a hang.

    A child is forked from a process that has imported all packages but started no runtime, so that a run costs what
    the command itself does. As a context manager, it ends the child on exit. ``limit`` is in seconds what a run may
    use of a processor, and for how long it may wait without using any.
    """

    def __init__(self, programs: Mapping[str, Program], scratch: Path, limit: float) -> None:
        self._programs, self._limit = programs, limit
        self._output = tuple(scratch / name for name in ("stdout", "stderr"))
        self._child = 0
        self._runs = 0
        self._orders = self._answers = -1
        scratch.mkdir(parents=True, exist_ok=True)

    def run(self, program: str, arguments: Sequence[str]) -> Ended:
        """Run one program and return how it ended; a run that hangs is killed."""
        if self._runs >= RUNS:
            self.close()
        if not self._child:
            self._fork()
        self._runs += 1
        started = time.perf_counter()
        message = pickle.dumps((program, list(arguments)))
        os.write(self._orders, struct.pack("<I", len(message)) + message)
        patience = Patience(self._child, self._limit)
        while not (ready := select.select([self._answers], [], [], _LOOK)[0]) and not patience.is_over():
            continue
        answer = os.read(self._answers, 4) if ready else None
        seconds = time.perf_counter() - started
        status: int | None
        if answer is None:
            status = None
            self.close()
        elif len(answer) < 4:  # the child is gone
            _, ended = os.waitpid(self._child, 0)
            status = os.waitstatus_to_exitcode(ended)
            self._forget()
        else:
            (status,) = struct.unpack("<i", answer)
        stdout, stderr = (path.read_bytes() for path in self._output)
        return Ended(status, stdout, stderr, seconds)

    def close(self) -> None:
        """Kill the child and all that it started."""
        if self._child:
            with suppress(ProcessLookupError):
                os.killpg(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._forget()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGKILL)  # what it started
        os.close(self._orders)
        os.close(self._answers)
        self._child = self._runs = 0

    def _fork(self) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = os.fork()
        if not self._child:
            try:
                os.close(self._orders)
                os.close(self._answers)
                _serve(orders, answers, self._programs, self._output)
            finally:
                os._exit(70)
        os.close(orders)
        os.close(answers)


def _serve(orders: int, answers: int, programs: Mapping[str, Program], output: Sequence[Path]) -> None:
    os.setsid()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while header := os.read(orders, 4):
        (length,) = struct.unpack("<I", header)
        message = b""
        while len(message) < length:
            message += os.read(orders, length - len(message))
        name, arguments = pickle.loads(message)
        for number, path in enumerate(output, 1):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        status = _run(programs[name], arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)  # what C libraries hold back
        os.write(answers, struct.pack("<i", status))


def _stream(number: int) -> TextIO:
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", errors="backslashreplace")


def _run(program: Program, arguments: Sequence[str]) -> int:
    """Return the exit status that an interpreter would give."""
    try:
        program(arguments)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
