"""Mutations of request files: types, shapes, nulls and names of columns, odd archives, and the bytes."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from benchmarks.reliability.fuzz.mutate.byte_level import mutate_bytes
from benchmarks.reliability.fuzz.mutate.json_values import TEXTS

__all__ = ["arrow_bytes", "mutate_npz", "mutate_table", "npz_bytes"]

Table: TypeAlias = Any  # pyarrow has no types
_TYPES = (
    pa.int32(), pa.uint64(), pa.float32(), pa.float64(), pa.float16(), pa.string(), pa.bool_(), pa.large_string(),
    pa.decimal128(20, 2), pa.timestamp("ns"), pa.dictionary(pa.int32(), pa.int64()), pa.binary(), pa.null(),
)  # fmt: skip


def arrow_bytes(table: Table, suffix: str, rng: random.Random) -> bytes:
    """Return a table as the bytes of a Parquet file, or of an Arrow file or stream."""
    sink = pa.BufferOutputStream()
    if suffix == "parquet":
        compression = rng.choice(("snappy", "none", "zstd", "gzip"))
        pq.write_table(table, sink, compression=compression, row_group_size=rng.choice((1, 7, 1000)))
    else:
        options = ipc.IpcWriteOptions(compression=rng.choice((None, "lz4", "zstd")))
        writer = rng.choice((ipc.new_file, ipc.new_stream))(sink, table.schema, options=options)
        writer.write_table(table, max_chunksize=rng.choice((1, 7, 1000)))
        writer.close()
    return bytes(sink.getvalue())


def mutate_table(table: Table, suffix: str, rng: random.Random) -> bytes:
    """Return a file of the table with one to three changed columns, or with changed bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(arrow_bytes(table, suffix, rng), rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            table = rng.choice(_TABLE_CHANGES)(table, rng)
        except (pa.ArrowException, ValueError, TypeError, IndexError):  # a conversion that Arrow does not have
            continue
    try:
        return arrow_bytes(table, suffix, rng)
    except (pa.ArrowException, ValueError):  # a type that the format cannot hold
        return mutate_bytes(arrow_bytes(table.slice(0, 0).select([]), suffix, rng), rng)


def npz_bytes(arrays: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """Return arrays as the bytes of an npz archive, compressed or not."""
    sink = io.BytesIO()
    save: Callable[..., None] = np.savez if rng.random() < 0.5 else np.savez_compressed
    save(sink, **arrays)
    return sink.getvalue()


def mutate_npz(arrays: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """Return an archive with one to three changed arrays, or an odd archive, or one with changed bytes."""
    kind = rng.random()
    if kind < 0.25:
        return mutate_bytes(npz_bytes(arrays, rng), rng)
    if kind < 0.45:
        return _odd_archive(arrays, rng)
    changed = dict(arrays)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if changed:
            name = rng.choice(list(changed))
            try:
                rng.choice(_ARRAY_CHANGES)(changed, name, rng)
            except ValueError:  # a conversion that NumPy does not have, of text that is no number
                continue
    return npz_bytes({name.replace("\ud800", "?"): value for name, value in changed.items()}, rng)


def _retype(table: Table, rng: random.Random) -> Table:
    at = rng.randrange(table.num_columns)
    column, kind = table.column(at), rng.choice(_TYPES)
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        inner = rng.choice((kind, column.type.value_type))
        kind = rng.choice((pa.list_(inner), pa.list_(inner, size), pa.large_list(inner)))
    return table.set_column(at, table.schema.names[at], column.cast(kind, safe=False))


def _nulls(table: Table, rng: random.Random) -> Table:
    at = rng.randrange(table.num_columns)
    values = table.column(at).to_pylist()
    values[rng.randrange(len(values))] = None
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def _inner(table: Table, rng: random.Random) -> Table:
    """Change single values: NaN, edges of integers, lists of other lengths, a null in a list."""
    at = rng.randrange(table.num_columns)
    values, kind = table.column(at).to_pylist(), table.schema.field(at).type
    row = rng.randrange(len(values))
    if isinstance(values[row], list):
        changed = list(values[row])
        choice = rng.randrange(4)
        if choice == 0:
            changed.append(changed[0])
        elif choice == 1:
            changed.pop()
        elif choice == 2:
            changed[rng.randrange(len(changed))] = None
        else:
            changed = []
        values[row] = changed
        if rng.random() < 0.4:  # lengths that differ but add up
            values[rng.randrange(len(values))] = [*values[row - 1], *values[row]]
        kind = pa.list_(kind.value_type)
    elif isinstance(values[row], float):
        values[row] = rng.choice((float("nan"), float("inf"), 1e38, -0.0))
    else:
        values[row] = rng.choice((-1, 2**31, 2**62, -(2**63), 10**6))
    return table.set_column(at, table.schema.names[at], pa.array(values, kind))


def _columns(table: Table, rng: random.Random) -> Table:
    at = rng.randrange(table.num_columns)
    name, column = table.schema.names[at], table.column(at)
    kind = rng.randrange(7)
    if kind == 0:
        return table.remove_column(at)
    if kind == 1:
        return table.append_column(name, column)
    if kind == 2:
        renamed = [*table.schema.names]
        renamed[at] = rng.choice([text for text in TEXTS if "\ud800" not in text])
        return table.rename_columns(renamed)
    if kind == 3:
        return table.set_column(at, name, pa.array([column.to_pylist()] * len(table)))
    if kind == 4:
        structs = [{"x": value} for value in column.to_pylist()]
        return table.set_column(at, name, pa.array(structs))
    if kind == 5:
        other = rng.randrange(table.num_columns)
        return table.set_column(at, name, table.column(other))
    return table.set_column(at, name, column.combine_chunks().dictionary_encode())


def _rows(table: Table, rng: random.Random) -> Table:
    kind = rng.randrange(4)
    if kind == 0:
        return table.slice(0, 0)
    if kind == 1:
        return pa.concat_tables([table] * rng.choice((2, 40)))
    if kind == 2:
        return table.take(rng.sample(range(len(table)), len(table)))
    return table.slice(rng.randrange(len(table)))


_TABLE_CHANGES: tuple[Callable[[Table, random.Random], Table], ...] = (
    *(_retype, _retype, _nulls, _inner, _inner, _columns, _columns, _rows),
)


def _array_dtype(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    dtypes = ("<i4", ">i8", "<u8", "<f8", ">f4", "<f2", "?", "<c8", "S4", "U3", "<M8[ns]", "O", "V8", "i1")
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(rng.choice(dtypes), casting="unsafe")


def _array_shape(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    value = arrays[name]
    kind = rng.randrange(7)
    if kind == 0:
        arrays[name] = value[:0]
    elif kind == 1:
        arrays[name] = value[0]
    elif kind == 2:
        arrays[name] = np.asfortranarray(value)
    elif kind == 3:
        arrays[name] = value[..., None]
    elif kind == 4:
        arrays[name] = value.reshape(-1)
    elif kind == 5:
        arrays[name] = np.concatenate([value, value[:1]])
    else:
        arrays[name] = value.T


def _array_values(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    value = arrays[name].copy()
    if value.size:
        odd = (float("nan"), float("inf"), 1e38) if value.dtype.kind == "f" else (-1, 2**62, -(2**63), 10**6)
        if value.dtype.kind in "fi" and value.dtype.itemsize >= 4:
            value.flat[rng.randrange(value.size)] = value.dtype.type(rng.choice(odd))
    arrays[name] = value


def _array_names(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[rng.choice(TEXTS).replace("\0", "") or "empty"] = arrays.pop(name)
    else:
        arrays[name] = arrays[rng.choice(list(arrays))]


_ARRAY_CHANGES: tuple[Callable[[dict[str, np.ndarray], str, random.Random], None], ...] = (
    *(_array_dtype, _array_dtype, _array_shape, _array_shape, _array_values, _array_names),
)


def _odd_archive(arrays: dict[str, np.ndarray], rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    sink = io.BytesIO()
    if kind == 0:  # a single array under the name of an archive
        np.save(sink, next(iter(arrays.values())))
        return sink.getvalue()
    if kind == 1:
        return rng.choice((b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x80\x04N.", b"\x93NUMPY"))
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            np.save(member, value)
            data = member.getvalue()
            if kind == 2:
                data = _odd_header(data, rng)
            elif kind == 3 and rng.random() < 0.3:
                data = mutate_bytes(data, rng)
            archive.writestr(f"{name}.npy" if kind != 4 or rng.random() < 0.7 else f"../{name}", data)
    whole = bytearray(sink.getvalue())
    if kind == 5:  # an unknown or encrypted method in the central directory
        at = whole.rfind(b"PK\x01\x02")
        struct.pack_into("<H", whole, at + rng.choice((8, 10)), rng.choice((1, 6, 97, 99)))
    return bytes(whole)


def _odd_header(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<H", data[8:10])
    header, body = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    if rng.random() < 0.6:
        old = header[header.index("'shape': ") :].split("}")[0]
        sizes = ("(2**40,)", "(1099511627776,)", "(-1,)", "()", "(3.5,)", "('x',)", "[3]", "None", "(" * 200)
        header = header.replace(old, f"'shape': {rng.choice(sizes)}, ")
    else:
        header = header.replace("'descr': '", f"'descr': '{rng.choice(('|O', '>', 'x', '<i9', '|V99999999', ''))}")
    return data[:8] + struct.pack("<H", len(header)) + header.encode("latin1") + body
