"""A recorded file: Parquet in memory, then written whole under its name or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends.contract import Array
from engines.serve.record.rows import REQUEST_ID, SERVED, Column, UserRows
from graphs.base.errors import UgsepError

__all__ = [
    "MOST_REQUESTS",
    "VERSION_KEY",
    "Shard",
    "folder_bytes",
    "remove_unfinished",
    "require_pyarrow",
    "write_whole",
]

#: The key of the file's metadata that holds the version of the bundle whose scores were served.
VERSION_KEY = "ugsep.model_version"
#: Requests of one file: their ids count up from a random start whose lowest bits are zero.
MOST_REQUESTS = 1 << 20
_RANDOM_BITS = 43  # with the 20 above 63: positive in an int64
_GROUP_BYTES = 4 << 20  # of a row group before compression: what is in memory uncompressed
_UNFINISHED = ".requests-"


def require_pyarrow() -> None:
    """Check that Parquet can be written.

    Raises:
        UgsepError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise UgsepError("recording requires package 'pyarrow'; run: pip install 'ugsep[record]'") from error


class Shard:
    """Requests with the same columns, served by one version; not thread-safe."""

    def __init__(self, columns: tuple[Column, ...], version: str) -> None:
        import pyarrow as pa

        self.columns, self.version = columns, version
        self.requests = self.rows = 0
        self._first_id = secrets.randbits(_RANDOM_BITS) * MOST_REQUESTS
        self._waiting: list[UserRows] = []
        self._waiting_bytes = 0
        self._sink = pa.BufferOutputStream()
        self._writer: Any = None

    @property
    def name(self) -> str:
        """A file name that no other shard has and that sorts by time."""
        now = time.time_ns() // 1_000_000
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1000))
        return f"requests-{stamp}.{now % 1000:03}Z-{self._first_id // MOST_REQUESTS:011x}.parquet"

    @property
    def bytes(self) -> int:
        """The size so far; requests of an unfinished row group count uncompressed."""
        return int(self._sink.tell()) + self._waiting_bytes

    def add(self, part: UserRows) -> None:
        """Append a request."""
        self._waiting.append(part)
        self._waiting_bytes += part.bytes
        self.requests += 1
        self.rows += part.rows
        if self._waiting_bytes >= _GROUP_BYTES:
            self._write_group()

    def finish(self) -> memoryview:
        """Return the whole file."""
        if self._waiting:
            self._write_group()
        self._writer.close()
        return memoryview(self._sink.getvalue())

    def _write_group(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        first = self._first_id + self.requests - len(self._waiting)
        table = pa.table({c.name: _arrow(_values(c, self._waiting, first)) for c in self.columns})
        table = table.replace_schema_metadata({VERSION_KEY: self.version})
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._sink, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._waiting, self._waiting_bytes = [], 0


def _values(column: Column, parts: Sequence[UserRows], first_id: int) -> Array:
    """Return a column of several requests, [rows, *row_shape]."""
    name = column.name
    if name == REQUEST_ID:
        return np.repeat(np.arange(first_id, first_id + len(parts)), [part.rows for part in parts])
    if name in parts[0].user:
        return np.concatenate([np.repeat(part.user[name], part.rows, axis=0) for part in parts])
    if name in parts[0].items:
        return np.concatenate([part.items[name] for part in parts])
    return np.concatenate([part.served[name.removeprefix(SERVED)] for part in parts])


def _arrow(values: Array) -> Any:
    """Return an Arrow column, fixed-size lists for rows of several values."""
    import pyarrow as pa

    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for width in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, width)
    return column


def write_whole(path: Path, data: memoryview) -> None:
    """Write a file under a name that readers skip, sync it, and rename it; readable by its owner only.

    Raises:
        OSError: no file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with _locked_new(unfinished) as file:
        try:
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
            unfinished.rename(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file itself is synced
            os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _locked_new(path: Path) -> Iterator[int]:
    """Open a new file and lock it, so that ``remove_unfinished`` of another process leaves it alone."""
    while True:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nobody can lock and remove it either
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():  # else it was removed between the two calls
                yield file
                return
        finally:
            os.close(file)


def remove_unfinished(directory: Path) -> int:
    """Remove what killed processes left; return how many files. A file that a process still writes is locked.

    Raises:
        OSError: the directory cannot be read.
    """
    removed = 0
    for path in sorted(directory.glob(f"{_UNFINISHED}*.parquet")):
        with contextlib.suppress(OSError):  # locked, renamed meanwhile, or not ours: it stays
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
            finally:
                os.close(file)
    return removed


def folder_bytes(directory: Path) -> int:
    """Return the bytes of all files in a folder, not of its subfolders.

    Raises:
        OSError: the directory cannot be read.
    """
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
