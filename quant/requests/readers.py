"""Streaming reader of request data: Parquet, Arrow IPC or npz, one row per candidate, memory bounded by a batch."""

from __future__ import annotations

import glob as globbing
import hashlib
import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet

from graphs.base.errors import UgsepError, nearest
from graphs.base.names import USER_INDEX
from quant.arrays import Array
from quant.graph.gemms import load_graph, weights_of

REQUEST_ID = "request_id"
_SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc", ".npz")
_BATCH_ROWS = 8192


@dataclass(frozen=True)
class InputSpec:
    """A graph input: its name, NumPy dtype name (float32, int64, ...) and the shape of one row."""

    name: str
    dtype: str
    row_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class RequestSpec:
    """What a request must hold for a pair of graphs: user inputs, item inputs, and the tasks (label columns)."""

    user: tuple[InputSpec, ...]
    item: tuple[InputSpec, ...]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One request: ``user`` arrays have 1 row, ``items`` and ``labels`` (float32 [N]) one row per candidate."""

    request_id: int
    user: dict[str, Array]
    items: dict[str, Array]
    labels: dict[str, Array] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        """Number of candidates N."""
        return len(next(iter(self.items.values()))) if self.items else 0


def request_spec(user_onnx: Path, item_onnx: Path) -> RequestSpec:
    """Read from the graphs which columns a request needs; state tensors and ``user_index`` are left out.

    Raises:
        UgsepError: a graph cannot be read, or an input has an unknown row shape.
    """
    user, item = load_graph(user_onnx).graph, load_graph(item_onnx).graph
    state = {o.name for o in user.output} | {USER_INDEX}
    return RequestSpec(
        tuple(_input_spec(i, user_onnx) for i in user.input),
        tuple(_input_spec(i, item_onnx) for i in item.input if i.name not in state),
        tuple(o.name for o in item.output),
    )


def _input_spec(value: onnx.ValueInfoProto, path: Path) -> InputSpec:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim[1:]
    if any(not d.HasField("dim_value") for d in dims):
        raise UgsepError(f"'{path}': input '{value.name}' has a row of unknown shape; export it with fixed widths")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return InputSpec(value.name, dtype.name, tuple(d.dim_value for d in dims))


def request_files(sources: Sequence[Path | str]) -> tuple[Path, ...]:
    """Expand files, folders of shards and globs into files, each source's in sorted order.

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
    return tuple(files)


def read_requests(sources: Sequence[Path | str], spec: RequestSpec) -> Iterator[Request]:
    """Yield the requests of the files in order; rows with the same ``request_id`` in a row are one request.

    A request may go on in the next shard. Label columns named like a task are read where they exist.

    Raises:
        UgsepError: a missing column, a wrong dtype or width, NaN or Inf or null, user features that differ within
            a request, a truncated or unreadable shard (named), no rows at all.
    """
    carried: dict[str, Array] | None = None
    rows = 0
    for path in request_files(sources):
        for batch in _checked_batches(path, spec):
            rows += len(batch[REQUEST_ID])
            if carried is not None:
                batch = {name: np.concatenate([carried[name], batch[name]]) for name in batch}
            starts = np.flatnonzero(np.diff(batch[REQUEST_ID])) + 1
            bounds = [0, *starts.tolist()]
            for start, stop in itertools.pairwise(bounds):
                yield _request({n: a[start:stop] for n, a in batch.items()}, spec, path)
            carried = {n: a[bounds[-1] :] for n, a in batch.items()}  # the last request may go on
        last = path
    if carried is None or rows == 0:
        raise UgsepError(f"no rows in {', '.join(str(s) for s in sources)}; give at least one request")
    yield _request(carried, spec, last)


def _request(columns: dict[str, Array], spec: RequestSpec, path: Path) -> Request:
    identity = int(columns[REQUEST_ID][0])
    for wanted in spec.user:
        values = columns[wanted.name]
        if len(values) > 1 and (values != values[0]).any():
            raise UgsepError(
                f"'{path}': user feature '{wanted.name}' differs within request {identity}; "
                "a request is one user: give each user an own request_id"
            )
    return Request(
        identity,
        {s.name: columns[s.name][:1] for s in spec.user},
        {s.name: columns[s.name] for s in spec.item},
        {t: columns[t] for t in spec.tasks if t in columns},
    )


def _checked_batches(path: Path, spec: RequestSpec) -> Iterator[dict[str, Array]]:
    """Yield batches of columns that hold what the spec asks, labels included, at least one row each."""
    wanted = (InputSpec(REQUEST_ID, "int64"), *spec.user, *spec.item)
    try:
        with _opened(path) as (names, batches):
            for column in wanted:
                if column.name not in names:
                    raise UgsepError(f"'{path}': column '{column.name}' is missing{nearest(column.name, names)}")
            labels = tuple(InputSpec(t, "float32") for t in spec.tasks if t in names)
            for read in batches(tuple(dict.fromkeys(c.name for c in (*wanted, *labels)))):
                columns = {c.name: _checked(path, c, read[c.name]) for c in (*wanted, *labels)}
                if len(columns[REQUEST_ID]):
                    yield columns
    except (pa.ArrowException, zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UgsepError(f"'{path}' is damaged or truncated ({reason}); write this file again") from error


_ARROW_FILE, _STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
_Batches = Callable[[tuple[str, ...]], Iterator[dict[str, Any]]]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[tuple[str, ...], _Batches]]:
    """Yield a file's column names and a function (names) -> iterator of dicts of arrays or Arrow columns."""
    with path.open("rb") as file:
        if path.suffix == ".npz":
            archive = np.load(file, allow_pickle=False)

            def whole(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
                columns = {n: archive[n] for n in names}
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
            # Both forms of Arrow are called .arrow; the file form begins with its name.
            of_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
            if not of_file and _ends_early(file):  # a stream may end anywhere, says its reader
                raise ValueError("the stream has no end mark")
            file.seek(0)
            reader = ipc.open_file(file) if of_file else ipc.open_stream(file)

            def records(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
                numbered = (reader.get_batch(i) for i in range(reader.num_record_batches)) if of_file else reader
                for batch in numbered:
                    yield {n: batch.column(n) for n in names}

            yield tuple(reader.schema.names), records


def _ends_early(file: IO[bytes]) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_STREAM_END)))
    return file.read() != _STREAM_END


def _checked(path: Path, spec: InputSpec, column: Any) -> Array:
    """Return the column as [rows, *row_shape] of the spec's dtype, or say what is wrong with it."""
    where = f"'{path}': column '{spec.name}'"
    if isinstance(column, np.ndarray):
        values, rows = column, len(column)
    else:
        rows = len(column)
        while pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
            if column.null_count:
                raise UgsepError(f"{where} holds nulls; fill them")
            column = column.flatten()
        if column.null_count:
            raise UgsepError(f"{where} holds nulls; fill them")
        values = column.to_numpy(zero_copy_only=False)
    if values.dtype.name != spec.dtype:
        raise UgsepError(f"{where} is {values.dtype.name}, the graph takes {spec.dtype}; cast the column")
    expected = (rows, *spec.row_shape)
    if values.size != int(np.prod(expected)):
        width = values.size / rows if rows else 0
        raise UgsepError(f"{where} has {width:g} values per row, the graph takes {list(spec.row_shape)}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UgsepError(f"{where} holds NaN or Inf; clean the data")
    return values.reshape(expected)


def _suffixes() -> str:
    return ", ".join(_SUFFIXES)


class SamplesHash:
    """Hash of a stream of requests: column names, dtypes and bytes; shard boundaries and paths do not count."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}
        self.rows = 0
        self.requests = 0

    def update(self, request: Request) -> None:
        """Add one request."""
        self.rows += request.candidates
        self.requests += 1
        columns = {
            REQUEST_ID: np.array([request.request_id, request.candidates], np.int64),
            **{f"user/{n}": a for n, a in request.user.items()},
            **{f"item/{n}": a for n, a in request.items.items()},
        }
        for name, values in columns.items():
            if name not in self._columns:
                header = f"{name}:{values.dtype.name}:{list(values.shape[1:])}\n"
                self._columns[name] = hashlib.sha256(header.encode())
            self._columns[name].update(np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """Return the sha256 of what was added so far, whatever the order of the columns."""
        total = hashlib.sha256()
        for name in sorted(self._columns):
            total.update(f"{name}={self._columns[name].hexdigest()}\n".encode())
        return total.hexdigest()


def samples_sha256(requests: Iterable[Request]) -> str:
    """Return the hash of the requests (see :class:`SamplesHash`)."""
    samples = SamplesHash()
    for request in requests:
        samples.update(request)
    return samples.hexdigest()


def table_rows(user_onnx: Path, item_onnx: Path) -> int:
    """Return the rows of the smallest embedding table: random ids below it are valid everywhere."""
    rows = [w.shape[0] for p in (user_onnx, item_onnx) for w in weights_of(load_graph(p)) if w.kind == "table"]
    return min(rows, default=2)


def synthetic_requests(
    spec: RequestSpec, requests: int, candidates: int, vocabulary: int, seed: int
) -> Iterator[Request]:
    """Yield random requests: floats normal, integers uniform in [0, vocabulary). For trials, not for calibration."""
    generator = np.random.default_rng(seed)

    def column(wanted: InputSpec, rows: int) -> Array:
        shape = (rows, *wanted.row_shape)
        dtype = np.dtype(wanted.dtype)
        if dtype.kind == "f":
            return generator.standard_normal(shape).astype(dtype)
        return generator.integers(0, 2 if dtype.kind == "b" else vocabulary, shape).astype(dtype)

    for identity in range(requests):
        yield Request(
            identity,
            {s.name: column(s, 1) for s in spec.user},
            {s.name: column(s, candidates) for s in spec.item},
        )
