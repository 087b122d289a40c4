"""Read a small file from a directory that may have been tampered with."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from engines.bundle.files import reason
from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.regular_file import kind_of

__all__ = ["parse_document", "read_document", "read_file"]

_MAX_BYTES = 64 << 20


def read_document(directory: Path, name: str, absent: str, fix: str) -> dict[str, Any]:
    """Return the JSON object in ``directory/name``, its fields unchecked; no other file is touched.

    Arguments are those of ``read_file``.

    Raises:
        UgsepError: as in ``read_file``, or not a JSON object, or a name is repeated.
    """
    return parse_document(read_file(directory, name, absent, fix), directory / name, fix)


def parse_document(content: bytes, path: Path, fix: str) -> dict[str, Any]:
    """Return the JSON object in the content of the file ``path``, its fields unchecked; ``fix`` ends an error.

    Raises:
        UgsepError: not a JSON object, nested too deeply, or a name is repeated.
    """
    raw = read_json(content, str(path), fix)
    if not isinstance(raw, dict):
        raise UgsepError(f"{path}: not a JSON object; {fix}")
    return raw


def read_file(directory: Path, name: str, absent: str, fix: str) -> bytes:
    """Return the bytes of ``directory/name``.

    Args:
        directory: the folder of the file; links must not lead out of it.
        name: the name of the file.
        absent: end of the error if the file is missing.
        fix: how to fix any other problem, for the error.

    Raises:
        UgsepError: the file is missing, not a regular file, or larger than 64 MiB.
    """
    path = directory / name
    try:
        if not path.resolve().is_relative_to(directory.resolve()):
            raise UgsepError(f"{path}: a link leads out of the bundle; do not use this bundle")
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading from a pipe could block forever
            raise UgsepError(f"{path}: {kind_of(found.st_mode)}, not a file; {fix}")
        if found.st_size > _MAX_BYTES:
            raise UgsepError(f"{path}: size {found.st_size} is out of range (max {_MAX_BYTES} bytes); {fix}")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UgsepError(f"{directory}: no {name}{absent}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, up to Python 3.12
        raise UgsepError(f"{path}: cannot be read ({reason(error)}); {fix}") from error
