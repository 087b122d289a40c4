"""Read large files with O_DIRECT, bypassing the page cache where the system supports it."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from graphs.base.errors import UgsepError

BLOCK = 4096  # alignment of direct I/O
_AHEAD_BYTES = 64 << 20  # read ahead per call; stopping is checked in between
_log = logging.getLogger(__name__)


@dataclass
class File:
    """A file open for reading; ``direct`` is a second descriptor with O_DIRECT, None if that is unsupported.

    Filling the page cache costs more CPU time than quantizing weights that are read once. The first ``ahead`` bytes
    are cached already: ``reading_ahead`` advances it, because asking the system would make it read them.
    """

    path: Path
    cached: int
    direct: int | None
    ahead: int = 0

    def read(self, offset: int, length: int, buffer: Tensor | None = None, align: int = 1) -> Tensor:
        """Return ``length`` bytes, uint8, inside ``buffer`` if it is large enough and ``align`` permits.

        Raises:
            UgsepError: the file is too short.
        """
        low, high = offset - offset % BLOCK, offset + length + -(offset + length) % BLOCK
        lead = offset - low
        if buffer is None or self.direct is None or high - low > len(buffer) or lead % align:
            return self._read_cached(torch.empty(length, dtype=torch.uint8), offset)
        wanted = buffer[lead : lead + length]
        if offset + length <= self.ahead:
            return self._read_cached(wanted, offset)
        view, done = buffer[: high - low].numpy().data, 0
        while done < lead + length:
            got = os.preadv(self.direct, [view[done:]], low + done)
            done += got
            if got % BLOCK or not got:  # the end of the file
                break
        return wanted if done >= lead + length else self._read_cached(wanted, offset)

    def _read_cached(self, wanted: Tensor, offset: int) -> Tensor:
        view, done = wanted.numpy().data, 0
        while done < len(view):
            got = os.preadv(self.cached, [view[done:]], offset + done)
            if not got:
                raise UgsepError(f"{self.path} was truncated while it was read; start again")
            done += got
        return wanted


@contextmanager
def reading_ahead(files: Sequence[File], limit: int) -> Iterator[threading.Event]:
    """Fill the page cache with the first ``limit`` bytes of ``files`` in the background.

    Yields the event that stops it. POSIX_FADV_WILLNEED is no substitute: one call reads only a few MB.
    """
    stop = threading.Event()
    reader = threading.Thread(target=_read_ahead, args=(files, limit, stop), name="read ahead")
    reader.start()
    try:
        yield stop
    finally:
        stop.set()
        reader.join()


def _read_ahead(files: Sequence[File], limit: int, stop: threading.Event) -> None:
    left = limit
    with open(os.devnull, "wb", buffering=0) as nowhere:
        for file in files:
            while file.direct is not None and left and not stop.is_set():
                try:  # pages reach the null device inside the kernel, without a copy
                    got = os.sendfile(nowhere.fileno(), file.cached, file.ahead, min(left, _AHEAD_BYTES))
                except OSError as error:
                    _log.info("'%s' is not read ahead (%s)", file.path, error.strerror)
                    return
                file.ahead, left = file.ahead + got, left - got
                if not got:  # the end of the file
                    break


@contextmanager
def open_file(path: Path) -> Iterator[File]:
    """Open a file for reading, with O_DIRECT too if supported."""
    cached, direct = os.open(path, os.O_RDONLY), None
    try:
        direct = open_direct(path, os.O_RDONLY)
        yield File(path, cached, direct)
    finally:
        for descriptor in (cached, direct):
            if descriptor is not None:
                os.close(descriptor)


def open_direct(path: Path, mode: int) -> int | None:
    """Return a descriptor with O_DIRECT; None if the system or the file system does not support it."""
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        return os.open(path, mode | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None  # tmpfs, for example


def aligned_buffer(size: int) -> Tensor:
    """Return a page-aligned uint8 [size], as direct I/O needs it."""
    return torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8)[:size]
