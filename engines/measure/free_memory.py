"""The memory that this process may still take: a container or a limit may leave less than the machine has."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["free_bytes"]

#: By version of control groups: its folder, the files of the limit and of the use, and reclaimable bytes in the stat.
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still take: the least of what the machine, groups and limits leave.

    ``root`` is the folder of ``proc`` and ``sys``.
    """
    left = [psutil.virtual_memory().available, *_left_by_groups(root)]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        left.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(left))


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each control group of this process leaves; a group is also bound by those around it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, limit, used, reclaimable = _V1 if controllers else _V2
        top = root / folder
        group = top / path.lstrip("/")
        # In a container its own group is mounted at the top, whatever path the host knows it by.
        for place in (group, *group.parents):
            if not place.is_relative_to(top):
                break
            bound = _number(place / limit)
            if bound is not None:
                stat = dict(entry.split(" ", 1) for entry in _lines(place / "memory.stat"))
                yield bound - max(0, (_number(place / used) or 0) - int(stat.get(reclaimable, "0")))


def _number(path: Path) -> int | None:
    """Return the number in a file, None if there is none: no such group, or no limit."""
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
