"""What lies at a path right now, told apart cheaply from what lay there before."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from engines.bundle.digest import digest_of, short_digest
from engines.bundle.files import MANIFEST
from engines.bundle.manifest import read_manifest
from graphs.base.errors import UgsepError

__all__ = ["Snapshot", "is_complete", "manifest_version", "resolve_bundle", "take_snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """A directory at one moment.

    ``root`` is the directory without links and ``directory`` its device and inode. ``files`` is a digest of the name,
    inode, size and times of every file; it is empty if there is no directory with a manifest.
    """

    root: Path
    directory: tuple[int, int]
    files: str

    @property
    def has_bundle(self) -> bool:
        """Whether there was a directory with a manifest."""
        return bool(self.files)


def resolve_bundle(path: Path) -> Path:
    """Return the directory that a path leads to, so that a link replaced later does not matter.

    Raises:
        UgsepError: a link that leads to itself.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, up to Python 3.12
        raise UgsepError(f"{path}: a link that leads nowhere; point it to a bundle") from error


def take_snapshot(path: Path) -> Snapshot:
    """Look at a path; nothing is opened, and what is missing or vanishes meanwhile is no error."""
    try:
        root = path.resolve()
    except (OSError, RuntimeError):  # as above
        return Snapshot(path.absolute(), (0, 0), "")
    try:
        found = root.stat()
        has_manifest = (root / MANIFEST).is_file()
    except OSError:
        return Snapshot(root, (0, 0), "")
    directory = (found.st_dev, found.st_ino)
    if not has_manifest:
        return Snapshot(root, directory, "")
    digest = hashlib.blake2b(str(root).encode(errors="surrogateescape"), digest_size=16)
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            digest.update(_identity(os.path.join(folder, name)).encode(errors="surrogateescape"))
    return Snapshot(root, directory, digest.hexdigest())


def manifest_version(root: Path) -> str:
    """Return the version of a bundle: the first 12 hex digits of its digest; a damaged manifest has one of its own.

    Raises:
        UgsepError: the manifest cannot be read.
    """
    try:
        return short_digest(digest_of((root / MANIFEST).read_bytes()))
    except OSError as error:
        raise UgsepError(f"{root / MANIFEST}: cannot be read ({error.strerror}); build the bundle again") from error


def is_complete(root: Path) -> bool:
    """Whether every file of the manifest is there with its size, so that no copy is under way; nothing is hashed."""
    try:
        manifest = read_manifest(root)
        return all((root / name).stat().st_size == entry.bytes for name, entry in manifest.files.items())
    except (OSError, UgsepError):
        return False


def _identity(file: str) -> str:
    """Return what changes when a file is written or replaced."""
    try:
        found = os.stat(file)
    except OSError:
        return f"{file}\0gone\0"
    return f"{file}\0{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0"
