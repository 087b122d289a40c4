"""Hashes of the files of a bundle: taken when it is written, checked before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphs.base.errors import UgsepError

MANIFEST = "manifest.json"


_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: size in bytes and sha256 in hex."""

    bytes: int
    sha256: str


def hash_file(path: Path) -> FileEntry:
    """Return size and sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
    return FileEntry(size, digest.hexdigest())


def verify_files(directory: Path, files: Mapping[str, FileEntry], rebuild: str = "") -> None:
    """Check size and sha256 of files by their path in the bundle; ``rebuild`` is the command that makes it again.

    Raises:
        UgsepError: a file is missing, leaves the bundle through a link, cannot be read, or differs; both values are
            printed.
    """
    root = directory.resolve()
    for name, entry in files.items():
        path = directory / name
        try:
            problem = _file_problem(path, root, entry)
        except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
            problem = f"cannot read it ({_reason(error)})"
        if problem:
            again = f"; rebuild: {rebuild}" if rebuild else ""  # a cached engine has no command
            raise UgsepError(f"{path}: {problem}{again}")


def unlisted_files(directory: Path, files: Mapping[str, FileEntry]) -> list[str]:
    """Return the files and links of a bundle that are not among ``files`` nor the manifest, sorted."""
    known = {MANIFEST, *files}
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(directory).as_posix() for path in found} - known)


def _file_problem(path: Path, root: Path, entry: FileEntry) -> str:
    """Say what is wrong with one file of a bundle, empty where nothing is."""
    if not path.resolve().is_relative_to(root):
        return "a link leads out of the bundle"
    if not path.is_file():
        return "missing from the bundle"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"{size} bytes but the manifest says {entry.bytes}"
    digest = hash_file(path).sha256
    if digest != entry.sha256:
        return f"sha256 {digest[:16]} but the manifest says {entry.sha256[:16]}"
    return ""


def _reason(error: OSError | RuntimeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
