"""Hashes of a bundle's files: recorded when it is written, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphs.base.errors import UgsepError
from graphs.base.regular_file import kind_of

__all__ = ["MANIFEST", "FileEntry", "hash_file", "hash_files", "reason", "unlisted_files", "verify_files"]

MANIFEST = "manifest.json"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: size in bytes and sha256 in hex."""

    bytes: int
    sha256: str


def hash_file(path: Path) -> FileEntry:
    """Return size and sha256 of a file, read in chunks of 4 MiB."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size, digest.hexdigest())


def hash_files(directory: Path) -> dict[str, FileEntry]:
    """Return the entry of every file under ``directory`` except the manifest, by relative path."""
    found = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in found}


def verify_files(directory: Path, files: Mapping[str, FileEntry], rebuild: str = "") -> None:
    """Check size and sha256 of files, given by their path relative to ``directory``.

    ``rebuild`` is the command that builds the bundle again; empty for a cached engine.

    Raises:
        UgsepError: a file is missing, is a link out of the bundle, cannot be read, or differs (with both values).
    """
    root = directory.resolve()
    for name, entry in files.items():
        path = directory / name
        try:
            problem = _file_problem(path, root, entry)
        except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, up to Python 3.12
            problem = f"cannot be read ({reason(error)})"
        if problem:
            raise UgsepError(f"{path}: {problem}" + (f"; rebuild: {rebuild}" if rebuild else ""))


def unlisted_files(directory: Path, files: Mapping[str, FileEntry]) -> list[str]:
    """Return the files and links of a bundle that are neither in ``files`` nor the manifest, sorted."""
    known = {MANIFEST, *files}
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(directory).as_posix() for path in found} - known)


def _file_problem(path: Path, root: Path, entry: FileEntry) -> str:
    """Return the problem with one file of a bundle, or an empty string."""
    if not Path(os.path.realpath(path)).is_relative_to(root):
        return "a link leads out of the bundle"
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing from the bundle"
    if not stat.S_ISREG(status.st_mode):
        return f"{kind_of(status.st_mode)}, not a file"
    size = status.st_size
    if size != entry.bytes:
        return f"{size} bytes but the manifest says {entry.bytes}"
    digest = hash_file(path).sha256
    if digest != entry.sha256:
        return f"sha256 {digest[:16]} but the manifest says {entry.sha256[:16]}"
    return ""


def reason(error: OSError | RuntimeError) -> str:
    """Return the system's message without the path, which our messages already name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
