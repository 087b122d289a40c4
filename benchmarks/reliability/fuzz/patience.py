"""When a process is taken to hang: by what it does, since how long it takes says how busy the machine is."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["Patience"]

_BOUND = 20.0  # limits of wall time, whatever a process does: one that polls for ever uses next to no processor
_WILLING = ("R", "D")  # states of threads that wait for the machine, not for an event


class Patience:
    """Watch a process and all that it started, from now on.

    Args:
        process: its id.
        limit: in seconds, what it may use of a processor, and for how long it may wait without using any.
    """

    def __init__(self, process: int, limit: float) -> None:
        self._process, self._limit = process, limit
        self._began = self._moved = time.monotonic()
        self._start = self._used = _looked_at(process)[0]

    def is_over(self) -> bool:
        """Return whether the process hangs; call this often, because what it does between two calls is not seen."""
        now = time.monotonic()
        used, willing = _looked_at(self._process)
        if willing or used != self._used:
            self._moved = now
        self._used = used
        return (
            used - self._start > self._limit
            or now - self._moved > self._limit
            or now - self._began > _BOUND * self._limit
        )


def _looked_at(process: int) -> tuple[float, bool]:
    """Return the seconds of processor time of a process and its descendants, and whether one of them would run."""
    total, willing = 0.0, False
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process)
        for one in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile: its parent has its time
                times = one.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
                willing = willing or _would_run(one.pid)
    return total, willing


def _would_run(process: int) -> bool:
    for status in Path(f"/proc/{process}/task").glob("*/stat"):
        with suppress(OSError):  # the thread ended
            if status.read_text(errors="replace").rpartition(")")[2].split()[0] in _WILLING:
                return True
    return False
