"""Audit hooks in a forked process: a signal at the n-th file operation, and no network."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from benchmarks.reliability.children.order import Trap

#: Audit events of operations that change names or open files; their first argument is the path.
_OPERATIONS = frozenset(
    "open os.rename os.remove os.mkdir os.rmdir os.link os.symlink os.truncate os.chmod os.utime os.scandir "
    "os.listdir".split()
)


def set_trap(trap: Trap) -> Any:
    """Return an audit hook that counts file operations and sends the trap's signal before one of them."""
    root = os.fsencode(trap.root)
    counter = os.open(trap.counter, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    numbers = itertools.count(1)  # next() is atomic: other threads open files too

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS or not _inside(arguments[0], root):
            return
        number = next(numbers)
        os.pwrite(counter, b"%d" % number, 0)
        if number == trap.operation:
            os.killpg(0, trap.signal)

    return hook


def _inside(path: Any, root: bytes) -> bool:
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False  # an open descriptor
    name = os.fsencode(path)
    return name.startswith(root) or not name.startswith(b"/")


def counted(counter: Path) -> int:
    """Return how many operations a trap has counted."""
    return int(counter.read_text() or 0) if counter.exists() else 0


def no_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse connections and look-ups beyond this machine; an audit hook.

    Raises:
        OSError: there was one.
    """
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = str(arguments[0])
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "None", ""):
        raise OSError(101, f"the network is not to be used, but {host} was", None)
