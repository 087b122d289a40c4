"""Streaming reader of request data: Parquet, Arrow IPC or npz, one row per candidate, memory bounded by a batch."""

from __future__ import annotations

import glob as globbing
import itertools
import lzma
import math
import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet

from graphs.base.errors import UgsepError, nearest
from graphs.base.regular_file import is_regular_file
from quant.arrays import Array
from quant.requests.spec import REQUEST_ID, InputSpec, Request, RequestSpec

_SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc", ".npz")
_BATCH_ROWS = 8192


def request_files(sources: Sequence[Path | str]) -> tuple[Path, ...]:
    """Expand files, folders of shards and globs into files, sorted within each source.

    Raises:
        UgsepError: a source matches no file, or a file has an unknown suffix.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.name[0] not in "._")
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(p) for p in globbing.glob(str(source), recursive=True))
        if not found:
            raise UgsepError(f"no request data at '{source}'; give a file, a folder or a glob of {_suffixes()}")
        files += found
    for path in files:
        if path.suffix not in _SUFFIXES:
            raise UgsepError(f"'{path}' is not one of {_suffixes()}; convert it")
        is_regular_file(path, "write this file again")
    return tuple(files)


def read_requests(sources: Sequence[Path | str], spec: RequestSpec) -> Iterator[Request]:
    """Yield the requests of the files in order; rows with the same ``request_id`` in a row are one request.

    A request may continue in the next shard. Label columns (named after their task) are read if present.

    Raises:
        UgsepError: a missing column, a wrong dtype or width, NaN, Inf or null, user features that differ within
            a request, a truncated or unreadable shard (named), labels in some files only, no rows at all.
    """
    carried: dict[str, Array] | None = None
    rows = 0
    for path in request_files(sources):
        for batch in _checked_batches(path, spec):
            rows += len(batch[REQUEST_ID])
            if carried is not None:
                _check_labels(path, carried, batch)
                batch = {name: np.concatenate([carried[name], batch[name]]) for name in batch}
            starts = np.flatnonzero(np.diff(batch[REQUEST_ID])) + 1
            bounds = [0, *starts.tolist()]
            for start, stop in itertools.pairwise(bounds):
                yield _request({n: a[start:stop] for n, a in batch.items()}, spec, path)
            carried = {n: a[bounds[-1] :] for n, a in batch.items()}  # the last request may continue
        last = path
    if carried is None or rows == 0:
        raise UgsepError(f"no rows in {', '.join(str(s) for s in sources)}; give at least one request")
    yield _request(carried, spec, last)


def _check_labels(path: Path, before: dict[str, Array], now: dict[str, Array]) -> None:
    """Reject a file with other label columns than those before it: the features are the same in all."""
    for name in sorted(before.keys() ^ now.keys()):
        has, have = ("has", "lack") if name in now else ("lacks", "have")
        raise UgsepError(f"'{path}' {has} column '{name}', the files before it {have} it; label all of them or none")


def _request(columns: dict[str, Array], spec: RequestSpec, path: Path) -> Request:
    identity = int(columns[REQUEST_ID][0])
    for wanted in spec.user:
        values = columns[wanted.name]
        if len(values) > 1 and (values != values[0]).any():
            raise UgsepError(
                f"'{path}': user feature '{wanted.name}' differs within request {identity}; "
                "a request is one user: give each user its own request_id"
            )
    return Request(
        identity,
        {s.name: columns[s.name][:1] for s in spec.user},
        {s.name: columns[s.name] for s in spec.item},
        {t: columns[t] for t in spec.tasks if t in columns},
    )


def _checked_batches(path: Path, spec: RequestSpec) -> Iterator[dict[str, Array]]:
    """Yield non-empty batches of the columns that the spec asks for, and of the labels that are present."""
    wanted = (InputSpec(REQUEST_ID, "int64"), *spec.user, *spec.item)
    try:
        with _opened(path) as (names, batches):
            for column in wanted:
                if column.name not in names:
                    raise UgsepError(f"'{path}': column '{column.name}' is missing{nearest(column.name, names)}")
            for name in (*(c.name for c in wanted), *spec.tasks):
                if names.count(name) > 1:
                    raise UgsepError(f"'{path}': column '{name}' is there {names.count(name)} times; keep one")
            labels = tuple(InputSpec(t, "float32") for t in spec.tasks if t in names)
            for read in batches(tuple(dict.fromkeys(c.name for c in (*wanted, *labels)))):
                columns = {c.name: _checked(path, c, read[c.name]) for c in (*wanted, *labels)}
                if len(columns[REQUEST_ID]):
                    yield columns
    # Arrow's lengths are believed before the file is read. ArrowMemoryError is an ArrowException too.
    except MemoryError as error:
        raise UgsepError(
            f"'{path}' claims more than memory holds; write it again, in smaller record batches"
        ) from error
    # zipfile raises NotImplementedError and RuntimeError for a method it does not know and for an encrypted archive;
    # NumPy lets TokenError out of the header of an array.
    except (
        pa.ArrowException, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, ValueError, EOFError,
        NotImplementedError, RuntimeError, tokenize.TokenError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:120]
        raise UgsepError(f"'{path}' is damaged or truncated ({reason}); write this file again") from error


_MOST_ROWS = (1 << 63) - 1  # that NumPy can count
_ARROW_FILE, _STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_Batches = Callable[[tuple[str, ...]], Iterator[dict[str, Any]]]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[tuple[str, ...], _Batches]]:
    """Yield a file's column names and a function (names) -> iterator of dicts of arrays or Arrow columns."""
    with path.open("rb") as file:
        if path.suffix == ".npz":
            with _python_2_allowed():
                archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UgsepError(f"'{path}' is a single array (.npy); write an .npz with one array per column")

            def whole(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
                columns = {n: _member(archive, n) for n in names}
                for n, column in columns.items():
                    if column.ndim == 0:
                        raise UgsepError(f"'{path}': array '{n}' has no axes; give one row per candidate")
                if len({len(c) for c in columns.values()}) != 1:
                    raise UgsepError(f"'{path}': arrays have different numbers of rows; give one row per candidate")
                yield columns

            yield tuple(archive.files), whole
        elif path.suffix == ".parquet":
            table = parquet.ParquetFile(file)

            def groups(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=list(names)):
                    yield {n: batch.column(n) for n in names}

            yield tuple(table.schema_arrow.names), groups
        else:
            # Both Arrow formats use .arrow; the file format starts with its magic number.
            of_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
            if not of_file and _ends_early(file):  # pyarrow accepts a stream that ends after any batch
                raise ValueError("the stream has no end-of-stream marker")
            file.seek(0)
            reader = ipc.open_file(file) if of_file else ipc.open_stream(file)

            def records(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
                numbered = (reader.get_batch(i) for i in range(reader.num_record_batches)) if of_file else reader
                for batch in numbered:
                    yield {n: batch.column(n) for n in names}

            yield tuple(reader.schema.names), records


def _member(archive: np.lib.npyio.NpzFile, name: str) -> Array:
    """Return an array of an archive, allocated only if the archive has as many bytes as its header says.

    Raises:
        ValueError: a member that is no array, or that is shorter than its shape.
    """
    members = archive.zip
    assert members is not None  # NumPy drops it when the archive is closed
    stored = name if name in members.NameToInfo else f"{name}.npy"
    with _python_2_allowed():
        with members.open(stored) as file:
            shape, dtype = _header(file, name)
        if math.prod(shape) * dtype.itemsize > members.getinfo(stored).file_size:
            raise ValueError(f"array '{name}' is shorter than its shape")
        return archive[name]


@contextmanager
def _python_2_allowed() -> Iterator[None]:
    """Read arrays that were written on Python 2 without NumPy's warning: commands print one line of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an array in a file; raises ValueError."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:  # the others are for names of fields that are not Latin-1; columns have none
        raise ValueError(f"array '{name}' has format {version}")
    try:
        shape, _, dtype = _HEADERS[version](file)
    # MemoryError and RecursionError are of Python's parser, for thousands of signs or brackets; TypeError of NumPy,
    # for keys and numbers of other types.
    except (MemoryError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"array '{name}' has a damaged header") from error
    if any(type(length) is not int or not 0 <= length <= _MOST_ROWS for length in shape):
        raise ValueError(f"array '{name}' has a shape that no array has")
    return shape, dtype


def _ends_early(file: IO[bytes]) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_STREAM_END)))
    return file.read() != _STREAM_END


def _checked(path: Path, spec: InputSpec, column: Any) -> Array:
    """Return the column as [rows, *row_shape] of the spec's dtype; any mismatch is a UgsepError."""
    location = f"'{path}': column '{spec.name}'"
    width = math.prod(spec.row_shape)
    if isinstance(column, np.ndarray):
        values, rows = column, len(column)
    else:
        column.validate(full=True)  # Arrow ends the process where offsets lead out of a column
        rows = len(column)
        while (fixed := pa.types.is_fixed_size_list(column.type)) or _is_list(column.type):
            if column.null_count:
                raise UgsepError(f"{location} holds nulls; fill them")
            lengths = [] if fixed else sorted(set(column.value_lengths().to_pylist()))
            if len(lengths) > 1:
                raise UgsepError(
                    f"{location} has lists of {lengths[0]} to {lengths[-1]} values; pad them to one length"
                )
            if _is_view(column.type) and lengths and lengths[0] > max(width, 1):
                # Any number of views may be of the same values: a small file can stand for more than memory holds.
                raise UgsepError(
                    f"{location} has {lengths[0]} values per row, the graph takes {list(spec.row_shape)}; reshape it"
                )
            column = column.flatten()
        if column.null_count:
            raise UgsepError(f"{location} holds nulls; fill them")
        try:
            values = column.to_numpy(zero_copy_only=False)
        except pa.ArrowNotImplementedError as error:  # unions
            kind = str(column.type)[:60]
            raise UgsepError(f"{location} is {kind}, the graph takes {spec.dtype}; cast the column") from error
    if values.dtype.name != spec.dtype:
        kind = str(column.type)[:60] if values.dtype == object and values is not column else values.dtype.name
        raise UgsepError(f"{location} is {kind}, the graph takes {spec.dtype}; cast the column")
    expected = (rows, *spec.row_shape)
    if values.size != int(np.prod(expected)):
        found = values.size / rows if rows else 0
        raise UgsepError(
            f"{location} has {found:g} values per row, the graph takes {list(spec.row_shape)}; reshape it"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UgsepError(f"{location} holds NaN or Inf; clean the data")
    return values.reshape(expected)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) or _is_view(kind)


def _is_view(kind: Any) -> bool:
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _suffixes() -> str:
    return ", ".join(_SUFFIXES)
