"""Read large files past the system's file cache, where it lets us, and open files for writing so."""

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

BLOCK = 4096  # what disks read and write whole
_AHEAD_BYTES = 64 << 20  # read ahead in one call, after which it may stop
_log = logging.getLogger(__name__)


@dataclass
class File:
    """A file open for reading; ``direct`` is it again, past the file cache, None where that is not to be had.

    Filling the cache costs more processor time than quantizing what is read once and never again. ``ahead`` bytes at
    its start are there already: ``reading_ahead`` moves it. To ask the system instead would make it read them.
    """

    path: Path
    cached: int
    direct: int | None
    ahead: int = 0

    def read(self, offset: int, length: int, room: Tensor | None = None, align: int = 1) -> Tensor:
        """Return ``length`` bytes, uint8; in ``room``, at a multiple of ``align``, where it serves.

        Raises:
            UgsepError: the file ends before.
        """
        low, high = offset - offset % BLOCK, offset + length + -(offset + length) % BLOCK
        lead = offset - low
        if room is None or self.direct is None or high - low > len(room) or lead % align:
            return self._read_cached(torch.empty(length, dtype=torch.uint8), offset)
        wanted = room[lead : lead + length]
        if offset + length <= self.ahead:
            return self._read_cached(wanted, offset)
        view, done = room[: high - low].numpy().data, 0
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
                raise UgsepError(f"{self.path} became shorter while it was read; start again")
            done += got
        return wanted


@contextmanager
def reading_ahead(files: Sequence[File], limit: int) -> Iterator[threading.Event]:
    """Fill the file cache with the first ``limit`` bytes of ``files`` in the background, while nobody needs the disk.

    Gives the event that ends it. POSIX_FADV_WILLNEED would not do: one call reads a few MB, whatever it is told.
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
                try:  # pages go to the null device uncopied, all in the system
                    got = os.sendfile(nowhere.fileno(), file.cached, file.ahead, min(left, _AHEAD_BYTES))
                except OSError as error:
                    _log.info("'%s' is not read ahead (%s)", file.path, error.strerror)
                    return
                file.ahead, left = file.ahead + got, left - got
                if not got:  # the end of the file
                    break


@contextmanager
def open_file(path: Path) -> Iterator[File]:
    """Open a file for reading, past the file cache too where the system lets us."""
    cached, direct = os.open(path, os.O_RDONLY), None
    try:
        direct = open_direct(path, os.O_RDONLY)
        yield File(path, cached, direct)
    finally:
        for descriptor in (cached, direct):
            if descriptor is not None:
                os.close(descriptor)


def open_direct(path: Path, mode: int) -> int | None:
    """Return a descriptor past the file cache; None where the system or the file system has no such thing."""
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        return os.open(path, mode | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None  # a file system in memory, for one


def aligned_room(size: int) -> Tensor:
    """Return uint8 [size] at the start of a page, as reading and writing past the file cache want it."""
    return torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8)[:size]
