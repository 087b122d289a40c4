"""Memory of a process: resident now, and its peak."""

from __future__ import annotations

import re
from pathlib import Path

import psutil


def resident_bytes(pid: int | None = None) -> int:
    """Return the resident memory of a process in bytes, this one by default; 0 if it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def peak_bytes() -> int | None:
    """Return the peak resident memory of this process in bytes; None if the system is not Linux.

    Read from /proc: psutil has no peak on Linux, and ``ru_maxrss`` keeps the peak of the process that started this
    one.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else None
