"""Publish a bundle directory atomically."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engines.bundle.files import MANIFEST
from graphs.base.errors import UgsepError

__all__ = ["publish"]

_BUILDING = ".building-"
_RETIRED = ".retired-"


@contextmanager
def publish(destination: Path, timeout: float = 0.0) -> Iterator[Path]:
    """Yield an empty sibling directory to build in; it replaces the destination if the block succeeds.

    A build that fails or is killed at any moment keeps the old bundle, if any: the new directory is flushed to disk
    first, then renamed to the destination. An existing bundle is exchanged with it atomically if the system supports
    that, otherwise with two renames. Leftovers of killed builds are removed. ``timeout``: seconds to wait for another
    build of the same destination.

    If the destination is a link, its target is replaced.

    Raises:
        UgsepError: another process is building there, the directory is not writable or not a bundle, or the disk is
            full.
    """
    with _user_errors(destination):
        destination = _resolved(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists() and not destination.is_dir():
            raise UgsepError(f"{destination}: a file is in the way; remove it or choose another directory")
        if destination.is_dir() and any(destination.iterdir()) and not _was_built(destination):
            raise UgsepError(
                f"{destination}: has files but is not a bundle, and a build replaces everything in it; choose "
                "another directory or empty this one"
            )
        lock = FileLock(destination.parent / f".{destination.name}.lock")
    try:
        with _user_errors(destination):
            lock.acquire(timeout=timeout)
    except Timeout as error:
        raise UgsepError(
            f"{destination}: another process is building here; wait for it or choose another directory"
        ) from error
    try:
        with _user_errors(destination):
            _clean(destination)
            work = Path(tempfile.mkdtemp(prefix=f".{destination.name}{_BUILDING}", dir=destination.parent))
        try:
            with _user_errors(destination):
                yield work
                _share(work)
                _sync(work)
                _swap(work, destination)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.release()


@contextmanager
def _user_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UgsepError(
                f"{destination}: the disk is full; free some space or choose another directory"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UgsepError(f"{destination}: not writable ({error.strerror}); choose another directory") from error
        raise


def _resolved(destination: Path) -> Path:
    # Path.resolve() raises for a symlink loop in Python 3.11 and 3.12, and returns a path in 3.13.
    try:
        destination.stat()
    except OSError as error:  # whatever else is wrong shows when it is written
        if error.errno == errno.ELOOP:
            raise UgsepError(f"{destination}: a link that points to itself; choose another directory") from error
    return Path(os.path.realpath(destination))


def _was_built(directory: Path) -> bool:
    """Whether a directory looks like a bundle, valid or not; a manifest.json alone could be a web page's."""
    return (directory / MANIFEST).is_file() and (directory / "engines").is_dir()


def _clean(destination: Path) -> None:
    """Remove the leftovers of killed builds; we hold the lock, so no live build owns them."""
    retired = _retired(destination)
    if retired.is_dir() and not destination.exists():  # killed between the two renames: restore the old bundle
        retired.rename(destination)
    for kind in (_BUILDING, _RETIRED):
        for stale in destination.parent.glob(f".{glob.escape(destination.name)}{kind}*"):
            shutil.rmtree(stale, ignore_errors=True)


def _retired(destination: Path) -> Path:
    return destination.parent / f".{destination.name}{_RETIRED}old"


def _swap(work: Path, destination: Path) -> None:
    """Replace the destination with ``work`` and remove the old directory."""
    if not destination.exists():
        work.rename(destination)
    elif _exchange(work, destination):
        shutil.rmtree(work, ignore_errors=True)
    else:
        retired = _retired(destination)
        destination.rename(retired)
        work.rename(destination)
        shutil.rmtree(retired, ignore_errors=True)
    _sync_directory(destination.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically; return False if the system or the file system does not support it."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange)
    return done == 0


def _share(work: Path) -> None:
    """Give every file the mode of a new file under the caller's umask, because libraries write some as 0600.

    Any user who can read one file of a published bundle can then serve it.
    """
    probe = work / ".mode"
    probe.touch()  # os.umask would briefly change the umask of other threads
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in (work, *work.rglob("*")):
        if not path.is_symlink():
            path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)


def _sync(directory: Path) -> None:
    """Flush files and directories to disk, so that a power failure cannot publish a bundle of empty files."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            _sync_directory(path)
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
