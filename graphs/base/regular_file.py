"""Tell a file from what else can have its name: reading a pipe may wait forever."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from graphs.base.errors import UgsepError

__all__ = ["is_regular_file", "kind_of"]

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def is_regular_file(path: Path, fix: str) -> bool:
    """Return whether a file is there, or a link to one: the cache of Hugging Face is made of links.

    Raises:
        UgsepError: something else has that name; says what it is, and ends with ``fix``.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null character
        if isinstance(error, ValueError) or not path.is_symlink():
            return False
        found = "a link that leads to no file"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        found = "a link that leads to itself"
    else:
        if stat.S_ISREG(mode):
            return True
        found = kind_of(mode)
    raise UgsepError(f"'{path}' is {found}, not a file; {fix}")


def kind_of(mode: int) -> str:
    """Return what is no regular file in words, ``a folder`` or ``a pipe``; ``mode`` is its ``st_mode``."""
    return next((words for test, words in _KINDS if test(mode)), "no regular file")
