"""Temporary folders that belong to a process: what a killed one leaves can be told from what a living one uses."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["remove_abandoned", "scratch_folder"]

_SUFFIX = re.compile(r"[a-z0-9_]{8}")  # what tempfile.mkdtemp appends


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder below ``parent`` (default: the system's temporary folder), and remove it at the end.

    The folder is locked while the block runs, and the kernel drops a lock with its process, however that ends. What
    killed processes left under the same prefix is removed first.

    Raises:
        OSError: the folder cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    remove_abandoned(place, prefix)
    folder, handle = _locked_folder(prefix, place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_abandoned(parent: Path, prefix: str) -> int:
    """Remove the folders of ``scratch_folder`` whose process ended; return their number.

    Names start with ``prefix`` and are followed by eight characters. Folders of other users, links, and anything on a
    file system without locks stay.
    """
    names = re.compile(re.escape(prefix) + _SUFFIX.pattern)
    removed = 0
    try:
        found = sorted(name for name in os.listdir(parent) if names.fullmatch(name))
    except OSError:  # no such folder, or not readable: nothing of ours to remove
        return 0
    for name in found:
        with suppress(OSError):  # its owner removed it meanwhile, or it is a link
            handle = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                # Held while removing: an owner between making and locking its folder waits, and makes another.
                if os.fstat(handle).st_uid == os.geteuid() and _lock(handle, fcntl.LOCK_NB):
                    shutil.rmtree(parent / name, ignore_errors=True)
                    removed += not (parent / name).exists()
            finally:
                os.close(handle)
    return removed


def _locked_folder(prefix: str, parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process took it for abandoned before it was locked
        _lock(handle, 0)
        if folder.is_dir():
            return folder, handle
        os.close(handle)


def _lock(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | how)
    except OSError:
        return False
    return True
