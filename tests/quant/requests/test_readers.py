import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet
import pytest

from graphs.base.errors import UgsepError
from quant.requests.hash import samples_sha256
from quant.requests.readers import read_requests, request_files
from quant.requests.spec import InputSpec, request_spec
from quant.requests.synthetic import synthetic_requests, table_rows


@pytest.fixture
def spec(graphs):
    return request_spec(*graphs)


def test_the_graphs_define_the_columns_of_a_request(spec) -> None:
    assert spec.user == (InputSpec("user_id", "int64"), InputSpec("user_dense", "float32", (4,)))
    assert spec.item == (InputSpec("item_id", "int64"), InputSpec("item_dense", "float32", (3,)))
    assert spec.tasks == ("click",)


def test_requests_are_whole_across_shards_and_batches(spec, make_columns, make_shards, tmp_path, monkeypatch) -> None:
    data = make_columns(20)
    make_shards(tmp_path / "data", data, [1, 11, 12, 40])
    monkeypatch.setattr("quant.requests.readers._BATCH_ROWS", 3)
    requests = list(read_requests([tmp_path / "data"], spec))
    ids, counts = np.unique(data["request_id"], return_counts=True)
    assert [r.request_id for r in requests] == ids.tolist()
    assert [r.candidates for r in requests] == counts.tolist()
    for name in ("item_id", "item_dense"):
        np.testing.assert_array_equal(np.concatenate([r.items[name] for r in requests]), data[name])
    starts = np.cumsum(counts) - counts
    np.testing.assert_array_equal(
        np.concatenate([r.user["user_dense"] for r in requests]), data["user_dense"][starts]
    )
    np.testing.assert_array_equal(np.concatenate([r.labels["click"] for r in requests]), data["click"])
    assert requests[0].user["user_id"].shape == (1,)


@pytest.mark.parametrize(
    "kind", ["file", "glob", "arrow", "arrow-stream", "npz", "list_", "large_list", "list_view", "large_list_view"]
)
def test_every_form_of_the_data_reads_and_hashes_the_same(
    spec, make_columns, make_table, make_shards, tmp_path, kind
) -> None:
    data = make_columns(12)
    make_shards(tmp_path / "shards", data, [17])
    expected = samples_sha256(read_requests([tmp_path / "shards"], spec))
    source: Path | str = tmp_path / "one.parquet"
    if kind == "file":
        parquet.write_table(make_table(dict(reversed(data.items()))), source)
    elif kind == "glob":
        source = str(tmp_path / "shards" / "part-*.parquet")
    elif kind.startswith("arrow"):
        source = tmp_path / "one.arrow"
        table = make_table(data)
        with (ipc.new_file if kind == "arrow" else ipc.new_stream)(source, table.schema) as file:
            for batch in table.to_batches(max_chunksize=5):
                file.write_batch(batch)
    elif kind == "npz":
        source = tmp_path / "one.npz"
        np.savez(source, **data)
    else:
        rows = getattr(pa, kind)(pa.float32())
        lists = {n: pa.array(v.tolist(), rows) if v.ndim > 1 else pa.array(v) for n, v in data.items()}
        parquet.write_table(pa.table(lists), source)
    assert samples_sha256(read_requests([source], spec)) == expected
    data["item_dense"][3, 1] += 1
    np.savez(tmp_path / "other.npz", **data)
    assert samples_sha256(read_requests([tmp_path / "other.npz"], spec)) != expected


@pytest.mark.parametrize(("labelled", "message"), [((0,), "'.*1.npz' lacks column 'click', .* have it"),
                                                   ((1,), "'.*1.npz' has column 'click', .* lack it")])  # fmt: skip
def test_labels_in_some_files_only_are_refused(spec, make_columns, tmp_path, labelled, message) -> None:
    for number in range(2):
        data = {n: v for n, v in make_columns(6).items() if n != "click" or number in labelled}
        np.savez(tmp_path / f"{number}.npz", **data)
    with pytest.raises(UgsepError, match=message):
        list(read_requests([tmp_path], spec))


def damage(data, what):
    if what == "missing":
        del data["item_dense"]
    elif what == "nan":
        data["item_dense"][4, 2] = np.nan
    elif what == "inf":
        data["user_dense"][0, 0] = -np.inf
    elif what == "dtype":
        data["item_dense"] = data["item_dense"].astype(np.float64)
    elif what == "int":
        data["item_id"] = data["item_id"].astype(np.int32)
    elif what == "width":
        data["item_dense"] = data["item_dense"][:, :2]
    elif what == "rows":
        for name in data:
            data[name] = data[name][:0]
    elif what == "user":
        data["user_id"][np.flatnonzero(np.diff(data["request_id"]) == 0)[0]] += 1
    elif what == "label":
        data["click"] = data["click"].astype(np.int64)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"shard.parquet': column 'item_dense' is missing"),
        ("nan", r"column 'item_dense' holds NaN or Inf"),
        ("inf", r"column 'user_dense' holds NaN or Inf"),
        ("dtype", r"column 'item_dense' is float64, the graph takes float32"),
        ("int", r"column 'item_id' is int32, the graph takes int64"),
        ("width", r"column 'item_dense' has 2 values per row, the graph takes \[3\]"),
        ("rows", r"no rows in .*shard.parquet"),
        ("user", r"user feature 'user_id' differs within request"),
        ("label", r"column 'click' is int64"),
    ],
)
def test_bad_columns_are_named(spec, make_columns, make_table, tmp_path, what, message) -> None:
    data = make_columns(12)
    damage(data, what)
    path = tmp_path / "shard.parquet"
    parquet.write_table(make_table(data), path)
    with pytest.raises(UgsepError, match=message):
        list(read_requests([path], spec))


def test_nulls_are_refused(spec, make_columns, make_table, tmp_path) -> None:
    table = make_table(make_columns(4))
    ids = table["item_id"].to_pylist()
    ids[1] = None
    index = table.schema.get_field_index("item_id")
    parquet.write_table(table.set_column(index, "item_id", pa.array(ids, pa.int64())), tmp_path / "a.parquet")
    with pytest.raises(UgsepError, match="'item_id' holds nulls"):
        list(read_requests([tmp_path / "a.parquet"], spec))


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "npz"])
def test_a_truncated_shard_in_the_middle_is_named(
    spec, make_columns, make_table, make_shards, tmp_path, suffix
) -> None:
    data = make_columns(12)
    shards = make_shards(tmp_path / "data", data, [10, 20])
    bad = shards[1].with_suffix(f".{suffix}")
    if suffix == "arrow":
        shards[1].unlink()
        with ipc.new_file(bad, make_table(data).schema) as file:
            file.write_table(make_table(data))
    elif suffix == "npz":
        shards[1].unlink()
        np.savez(bad, **data)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 2 // 3])
    requests = read_requests([tmp_path / "data"], spec)
    with pytest.raises(UgsepError, match=f"part-1.{suffix}' is damaged or truncated"):
        list(requests)


def test_sources_without_files_are_refused(tmp_path) -> None:
    with pytest.raises(UgsepError, match="no request data at"):
        request_files([tmp_path])
    with pytest.raises(UgsepError, match="no request data at"):
        request_files([tmp_path / "*.parquet"])
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(UgsepError, match=r"a.csv' is not one of .parquet"):
        request_files([tmp_path / "a.csv"])
    os.mkfifo(tmp_path / "a.parquet")
    for source in (tmp_path, tmp_path / "a.parquet", tmp_path / "*.parquet"):
        with pytest.raises(UgsepError, match=r"a.parquet' is a pipe, not a file"):
            request_files([source])


def test_npz_of_ragged_arrays_is_refused(spec, make_columns, tmp_path) -> None:
    data = make_columns(3)
    data["item_id"] = data["item_id"][:-1]
    np.savez(tmp_path / "a.npz", **data)
    with pytest.raises(UgsepError, match="different numbers of rows"):
        list(read_requests([tmp_path / "a.npz"], spec))


def test_a_column_that_is_there_twice_is_refused(spec, make_columns, make_table, tmp_path) -> None:
    table = make_table(make_columns(3))
    parquet.write_table(table.append_column("item_id", table["item_id"]), tmp_path / "a.parquet")
    with pytest.raises(UgsepError, match="column 'item_id' is there 2 times"):
        list(read_requests([tmp_path / "a.parquet"], spec))


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
def test_ragged_lists_of_the_right_total_are_refused(spec, make_columns, make_table, tmp_path, kind) -> None:
    data = make_columns(4)
    rows = data["item_dense"].tolist()
    rows[0].append(rows[1].pop())
    table = make_table(data)
    index = table.schema.get_field_index("item_dense")
    ragged = table.set_column(index, "item_dense", pa.array(rows, kind(pa.float32())))
    parquet.write_table(ragged, tmp_path / "a.parquet")
    with pytest.raises(UgsepError, match="column 'item_dense' has lists of 2 to 4 values; pad them"):
        list(read_requests([tmp_path / "a.parquet"], spec))


def test_an_npy_file_called_npz_is_refused(spec, tmp_path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.arange(3.0))
    with pytest.raises(UgsepError, match=r"a.npz' is a single array"):
        list(read_requests([tmp_path / "a.npz"], spec))


@pytest.mark.parametrize(
    "header",
    [
        *("{'descr': '<i8', (", "'''", "{'descr': '<i8',\n  'x': 3,\n 'y'\n  : }", "[" * 900, "-" * 9000),
        *(
            "{{1: 2}: 1}",
            "{1: 2, 'a': 3, 'descr': '<i8'}",
            "{'descr': '<i8', 'fortran_order': False, 'shape': (1 << 60,)}",
        ),
        "{'descr': '<i8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (0, 1180591620717411303424)}",
    ],
)
def test_a_header_that_is_no_dictionary_is_refused(spec, make_columns, tmp_path, header) -> None:
    """NumPy parses such headers with ``tokenize``, whose error is no ValueError."""
    path = tmp_path / "a.npz"
    text = f"{header}\n".encode()
    np.savez(path, **{name: values for name, values in make_columns(3).items() if name != "item_id"})
    with zipfile.ZipFile(path, "a") as archive:
        # magic, format 1.0, the length of the header in two bytes
        archive.writestr("item_id.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(UgsepError, match=r"a.npz' is damaged or truncated") as caught:
        list(read_requests([path], spec))
    assert str(caught.value).isprintable()


def test_an_array_written_on_python_2_is_read_without_a_warning(spec, make_columns, tmp_path) -> None:
    columns = make_columns(3)
    rows = len(columns["item_id"])
    path = tmp_path / "a.npz"
    np.savez(path, **{name: values for name, values in columns.items() if name != "item_id"})
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows}L,), }}\n".encode()
    with zipfile.ZipFile(path, "a") as archive:
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + columns["item_id"].tobytes()
        archive.writestr("item_id.npy", content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = np.concatenate([request.items["item_id"] for request in read_requests([path], spec)])
    np.testing.assert_array_equal(read, columns["item_id"])


@pytest.mark.parametrize(("name", "content"), [("item_id", b"text"), ("item_id.npy", b""), ("item_id.npy", b"NUMPY")])
def test_an_entry_that_is_no_array_is_refused(spec, make_columns, tmp_path, name, content) -> None:
    np.savez(tmp_path / "a.npz", **{name: values for name, values in make_columns(3).items() if name != "item_id"})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr(name, content)
    with pytest.raises(UgsepError, match=r"a.npz' is damaged or truncated \(EOF: reading magic string"):
        list(read_requests([tmp_path / "a.npz"], spec))


def test_an_array_without_axes_is_refused(spec, make_columns, tmp_path) -> None:
    np.savez(tmp_path / "a.npz", **(make_columns(3) | {"item_id": np.int64(3)}))
    with pytest.raises(UgsepError, match="array 'item_id' has no axes"):
        list(read_requests([tmp_path / "a.npz"], spec))


@pytest.mark.parametrize(("offset", "value"), [(10, b"\x63\0"), (8, b"\x01\0")])
def test_a_zip_method_or_encryption_that_cannot_be_read_is_refused(
    spec, make_columns, tmp_path, offset, value
) -> None:
    """Change method (offset 10 in the central directory) or flags (8) of every member."""
    path = tmp_path / "a.npz"
    np.savez(path, **make_columns(3))
    raw = bytearray(path.read_bytes())
    at = -1
    while (at := raw.find(b"PK\1\2", at + 1)) >= 0:
        raw[at + offset : at + offset + 2] = value
    path.write_bytes(raw)
    with pytest.raises(UgsepError, match=r"a.npz' is damaged or truncated"):
        list(read_requests([path], spec))


@pytest.mark.parametrize("what", ["no array", "huge", "newer format", "xz"])
def test_a_member_that_is_not_the_array_it_claims_is_refused(spec, make_columns, tmp_path, what) -> None:
    data = make_columns(3)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA if what == "xz" else zipfile.ZIP_STORED) as archive:
        for name, value in data.items():
            np.save(tmp_path / "one.npy", value)
            member = (tmp_path / "one.npy").read_bytes()
            if name == "item_id" and what == "no array":
                member = b"\x93NUMPX" + member[6:]
            elif name == "item_id" and what == "huge":  # 8 TiB, which no machine allocates
                member = member.replace(b"(%d,), }" % len(value) + b" " * 11, b"(1099511627776,), }", 1)
            elif name == "item_id" and what == "newer format":
                member = member[:6] + b"\x03\x00" + member[8:10] + b"\0\0" + member[10:]
            archive.writestr(f"{name}.npy", member)
        offset = archive.getinfo("item_id.npy").header_offset
    if what == "xz":
        raw = bytearray(path.read_bytes())
        start = offset + 30 + len("item_id.npy") + 9  # behind the local header and the properties of LZMA
        raw[start : start + 8] = b"\xff" * 8
        path.write_bytes(bytes(raw))
    with pytest.raises(UgsepError, match=r"a.npz' is damaged or truncated \((?!Unable to allocate)"):
        list(read_requests([path], spec))


def test_a_column_of_structs_is_named_with_its_type(spec, make_columns, make_table, tmp_path) -> None:
    table = make_table(make_columns(4))
    structs = pa.array([{"a": row} for row in range(table.num_rows)])
    table = table.set_column(table.column_names.index("item_id"), "item_id", structs)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UgsepError, match=r"column 'item_id' is struct<a: int64>, the graph takes int64; cast"):
        list(read_requests([tmp_path / "a.parquet"], spec))


def test_synthetic_requests_fit_the_graphs_and_repeat(spec, graphs) -> None:
    rows = table_rows(*graphs)
    assert rows == 41  # the smaller of the two tables
    first, again = (list(synthetic_requests(spec, 5, 7, rows, seed=3)) for _ in range(2))
    assert samples_sha256(first) == samples_sha256(again)
    assert [r.candidates for r in first] == [7] * 5
    assert max(r.items["item_id"].max() for r in first) < rows
