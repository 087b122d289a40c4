"""The end of a command after Ctrl-C: a line, and status 130."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from typing import NoReturn

__all__ = ["exit_aborted", "importing"]


@contextmanager
def importing() -> Iterator[None]:
    """End at once at Ctrl-C while the block imports modules, when there is nothing to clean up yet.

    An exception could come up in the middle of a C++ extension that is just being loaded, which then ends the process
    by SIGABRT, or be swallowed there.
    """
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # whoever uses this as a library decides
        return
    signal.signal(signal.SIGINT, _end_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_now(*_: object) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"aborted\n")
    os._exit(130)


def exit_aborted() -> NoReturn:
    """Say that the command was aborted and exit with status 130.

    CPython remembers a KeyboardInterrupt that left an ``exec`` of text, which dataclasses and named tuples are made
    by while modules are imported, and ends ``python -m`` by the signal even if the exception was caught. The next
    ``exec`` makes it forget.
    """
    print("aborted", file=sys.stderr)
    exec("")
    sys.exit(130)
