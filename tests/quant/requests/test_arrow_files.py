"""Requests in Arrow files that are built by other rules than ours, or damaged: Arrow itself believes most of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from graphs.base.errors import UgsepError
from quant.requests.readers import read_requests
from quant.requests.spec import request_spec


@pytest.fixture
def spec(graphs):
    return request_spec(*graphs)


def test_an_arrow_stream_without_its_end_is_truncated(spec, make_columns, make_table, tmp_path) -> None:
    """Cut between two batches, where the reader mistakes the end of the file for the end of the data."""
    table = make_table(make_columns(12))
    first, *_ = table.to_batches(max_chunksize=5)
    with (tmp_path / "a.arrow").open("wb") as file:
        writer = ipc.new_stream(file, table.schema)
        writer.write_batch(first)
        end = file.tell()
        writer.close()
    with (tmp_path / "a.arrow").open("r+b") as file:
        file.truncate(end)
    with pytest.raises(UgsepError, match=r"a\.arrow' is damaged or truncated"):
        list(read_requests([tmp_path / "a.arrow"], spec))


@pytest.mark.parametrize(("view", "offset"), [(pa.ListViewArray, pa.int32()), (pa.LargeListViewArray, pa.int64())])
def test_views_of_lists_are_read_in_any_order(spec, make_columns, make_table, tmp_path, view, offset) -> None:
    data = make_columns(4)
    rows, width = data["item_dense"].shape
    backwards, table = data["item_dense"][::-1].copy(), make_table(data)

    def written(offsets: list[int], length: int) -> Path:
        made = view.from_arrays(pa.array(offsets, offset), pa.array([length] * rows, offset), backwards.ravel())
        views = table.set_column(table.schema.get_field_index("item_dense"), "item_dense", made)
        with ipc.new_file(tmp_path / "a.arrow", views.schema) as writer:
            writer.write_table(views, max_chunksize=3)
        return tmp_path / "a.arrow"

    read = list(read_requests([written([width * (rows - 1 - row) for row in range(rows)], width)], spec))
    np.testing.assert_array_equal(
        np.concatenate([request.items["item_dense"] for request in read]), data["item_dense"]
    )
    with pytest.raises(UgsepError, match=f"has {rows * width} values per row, the graph takes .3.; reshape it"):
        list(read_requests([written([0] * rows, rows * width)], spec))
    raw = written([width] * rows, width).read_bytes()
    sound, wild = (np.full(3, at, offset.to_pandas_dtype()).tobytes() for at in (width, 9_999))
    assert sound in raw
    # The first chunk has the offsets before the lengths, which are the same numbers here.
    (tmp_path / "a.arrow").write_bytes(raw.replace(sound, wild, 1))
    with pytest.raises(UgsepError, match=r"a.arrow' is damaged or truncated"):
        list(read_requests([tmp_path / "a.arrow"], spec))


@pytest.mark.parametrize("offsets", [[51_200, 37_888, 24_576], [0, 5, 10]])
def test_lists_whose_offsets_lead_out_of_the_column_are_refused(spec, tmp_path, offsets) -> None:
    """With the first of them Arrow aborts the process instead of raising."""
    columns = {"request_id": pa.array([1, 1])}
    for wanted in (*spec.user, *spec.item):
        values = np.zeros((2, *wanted.row_shape), wanted.dtype)
        columns[wanted.name] = pa.array(list(values) if wanted.row_shape else values)
    table = pa.table(columns)
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    list(read_requests([tmp_path / "a.arrow"], spec))
    (width,) = {s.row_shape[0] for s in (*spec.user, *spec.item) if s.row_shape} & {3}
    raw = (tmp_path / "a.arrow").read_bytes()
    sound = np.array([0, width, 2 * width], np.int32).tobytes()
    assert sound in raw
    (tmp_path / "a.arrow").write_bytes(raw.replace(sound, np.array(offsets, np.int32).tobytes()))
    with pytest.raises(UgsepError, match=r"a.arrow' is damaged or truncated"):
        list(read_requests([tmp_path / "a.arrow"], spec))


def test_an_arrow_stream_that_claims_more_than_memory_is_refused(spec, make_columns, make_table, tmp_path) -> None:
    """Of a stream Arrow reads as many bytes as a message says it has, before it looks whether they are there."""
    table = make_table(make_columns(12))
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    raw = (tmp_path / "a.arrow").read_bytes()
    with ipc.open_stream(raw) as reader:
        (batch,) = reader
    body = ipc.read_message(batch.serialize()).body.size.to_bytes(8, "little")
    start = raw.index(body, len(table.schema.serialize()))  # the header of the batch, behind the schema
    (tmp_path / "a.arrow").write_bytes(raw[:start] + (1 << 62).to_bytes(8, "little") + raw[start + 8 :])
    with pytest.raises(UgsepError, match=r"a.arrow' claims more than memory holds; write it again"):
        list(read_requests([tmp_path / "a.arrow"], spec))


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream])
def test_compressed_columns_that_claim_more_than_memory_are_refused(
    spec, make_columns, make_table, tmp_path, new, compression
) -> None:
    """Each compressed buffer begins with the size that it has when it is expanded."""
    data = {name: np.zeros_like(values) for name, values in make_columns(12).items()}
    table = make_table(data)
    with new(tmp_path / "a.arrow", table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    list(read_requests([tmp_path / "a.arrow"], spec))
    raw = (tmp_path / "a.arrow").read_bytes()
    start = raw.rindex(data["item_dense"].nbytes.to_bytes(8, "little"))
    (tmp_path / "a.arrow").write_bytes(raw[:start] + (1 << 62).to_bytes(8, "little") + raw[start + 8 :])
    with pytest.raises(UgsepError, match=r"a.arrow' claims more than memory holds; write it again"):
        list(read_requests([tmp_path / "a.arrow"], spec))


@pytest.mark.parametrize("make", [pa.UnionArray.from_sparse, pa.UnionArray.from_dense])
def test_a_column_of_a_type_without_an_array_is_named_with_its_type(
    spec, make_columns, make_table, tmp_path, make
) -> None:
    table = make_table(make_columns(4))
    rows = table.num_rows
    places = (pa.array(range(rows), pa.int32()),) if make == pa.UnionArray.from_dense else ()
    union = make(pa.array([0] * rows, pa.int8()), *places, [table["item_id"].combine_chunks()])
    table = table.set_column(table.schema.get_field_index("item_id"), "item_id", union)
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UgsepError, match=r"'item_id' is (sparse|dense)_union<.*>, the graph takes int64; cast the"):
        list(read_requests([tmp_path / "a.arrow"], spec))
