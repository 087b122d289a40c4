import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from engines.bundle.fixture_file import Fixtures
from examples.movielens.__main__ import main
from examples.movielens.data.download import WHEEL, sha256_of
from examples.movielens.data.prepare import build, is_current, prepare, read_stamp, validation_from, write
from examples.movielens.data.tables import Items, Ratings, Users
from examples.movielens.folders import replacing, source_hash
from examples.movielens.training.batches import read_features, read_rows, request_batches
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress

Tables = tuple[Ratings, Users, Items]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(folder: Path, tables: Tables, key: str = "k") -> Path:
    features, splits = build(*tables, test_days=5)
    write(folder, features, splits, key, Fixtures(()))
    return folder


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, tables: Tables) -> None:
    one, two = prepared(tmp_path / "a", tables), prepared(tmp_path / "deep" / "b", tables)
    assert files(one) == files(two)
    assert set(files(one)) == {
        "train.parquet",
        "calibration.parquet",
        "test.parquet",
        "features.json",
        "stamp.json",
        "examples/examples.json",
        "examples/examples.safetensors",
    }


def test_files_follow_the_request_format(tmp_path: Path, tables: Tables) -> None:
    out = prepared(tmp_path / "a", tables)
    features, tasks = read_features(out)
    assert tasks == ("like",)
    ids = {}
    for name in ("train", "calibration", "test"):
        table = pq.read_table(out / f"{name}.parquet")
        ids[name] = table["request_id"].to_numpy()
        assert ids[name].dtype == np.int64
        assert len(np.flatnonzero(np.diff(ids[name]))) + 1 == len(set(ids[name])), "requests are contiguous"
        assert str(table.schema.field("like").type) == "float"
        for f in features:
            kind = table.schema.field(f.name).type
            if f.row_shape:
                assert kind.list_size == f.width
                kind = kind.value_type
            assert str(kind) == ("float" if f.kind == "dense" else "int64"), f.name
        rows = read_rows(out / f"{name}.parquet", features, tasks)
        assert rows.features["taste"].shape == (table.num_rows, 18)
    assert set(ids["calibration"]) < set(ids["train"])
    assert not set(ids["test"]) & set(ids["train"])
    assert ids["test"].min() > ids["train"].max(), "requests are numbered in time order"


def test_strangers_are_id_zero_after_the_fitted_requests(tables: Tables) -> None:
    _, splits = build(*tables, test_days=5)
    train, test = splits["train"], splits["test"]
    requests = np.unique(train.request_id)
    fitted = train.request_id < requests[validation_from(len(requests))]
    known = set(train.columns["item_id"][fitted])
    assert 0 not in known | set(train.columns["user_id"][fitted])
    for name in ("item_id", "recent_items", "recent_likes", "recent_dislikes"):
        assert set(test.columns[name].ravel()) <= known | {0}


@pytest.mark.parametrize("days", [0, 1000])
def test_an_empty_split_is_refused(tables: Tables, days: int) -> None:
    with pytest.raises(UgsepError, match=r"span \d+ days"):
        build(*tables, test_days=days)


def test_a_rating_of_an_unknown_item_is_refused(tables: Tables) -> None:
    ratings, users, items = tables
    short = Items(items.year[:-1], items.genres[:-1])
    with pytest.raises(UgsepError, match="has no row in its table"):
        build(ratings, users, short, test_days=5)


def test_content_decides_what_is_current(tmp_path: Path, tables: Tables) -> None:
    out = prepared(tmp_path / "a", tables)
    assert is_current(out, "k")
    assert not is_current(out, "another key")
    for file in ("test.parquet", "features.json", "examples/examples.json"):
        good = (out / file).read_bytes()
        (out / file).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert not is_current(out, "k"), file
        (out / file).write_bytes(good)
        assert is_current(out, "k")
    (out / "train.parquet").unlink()
    assert not is_current(out, "k")
    (out / "stamp.json").write_text("[]")
    assert read_stamp(out) is None


def test_unchanged_input_is_not_prepared_again(tmp_path: Path, write_wheel: Callable[..., Path]) -> None:
    events: list[Progress] = []
    sha = sha256_of(write_wheel(tmp_path / WHEEL))
    out = prepare(tmp_path, events.append, sha, test_days=5)
    before = {path: path.stat().st_ino for path in out.iterdir()}
    assert events[-1].note != "unchanged"
    assert prepare(tmp_path, events.append, sha, test_days=5) == out
    assert before == {path: path.stat().st_ino for path in out.iterdir()}
    assert events[-1].note == "unchanged"
    prepare(tmp_path, events.append, sha, test_days=4)
    assert events[-1].note != "unchanged"
    sha = sha256_of(write_wheel(tmp_path / WHEEL, seed=1))
    prepare(tmp_path, events.append, sha, test_days=4)
    assert events[-1].note != "unchanged"


def test_a_wrong_wheel_ends_the_command_with_2(tmp_path: Path, write_wheel: Callable[..., Path]) -> None:
    write_wheel(tmp_path / WHEEL)
    result = CliRunner().invoke(main, ["data", "--data", str(tmp_path)])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert ["sha256" in line for line in errors] == [True]
    assert not (tmp_path / "movielens").exists()


def test_a_failed_write_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replacing(out) as fresh:
        (fresh / "a").write_text("old")

    def fail() -> None:
        with replacing(out) as fresh:
            (fresh / "a").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(UgsepError, match=r"cannot write .*out: No space"):
        fail()
    assert files(out) == {"a": b"old"}
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UgsepError, match="cannot write"), replacing(tmp_path / "file" / "out"):
        pass


def test_source_hash_follows_imports(tmp_path: Path) -> None:
    assert source_hash("examples.movielens.data.features") == source_hash("examples.movielens.data.features")
    assert source_hash("examples.movielens.data.features") != source_hash("examples.movielens.data.past")
    # prepare imports features, so adding it by hand changes nothing
    both = source_hash("examples.movielens.data.prepare", "examples.movielens.data.features")
    assert both == source_hash("examples.movielens.data.prepare")


def test_batches_hold_whole_requests_once(tmp_path: Path, tables: Tables) -> None:
    out = prepared(tmp_path / "a", tables)
    features, tasks = read_features(out)
    rows = read_rows(out / "train.parquet", features, tasks)
    order = np.random.default_rng(0).permutation(rows.requests)
    batches = [b.numpy() for b in request_batches(rows, order, 10)]
    assert len(batches) > 3
    assert sorted(np.concatenate(batches)) == list(range(rows.first[-1]))
    request_of = np.repeat(np.arange(rows.requests), np.diff(rows.first))
    for one, other in itertools.pairwise(batches):
        assert not set(request_of[one]) & set(request_of[other])
        assert len(one) <= max(10, np.diff(rows.first).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["affinity"]), "column 'affinity' is missing"),
        (lambda t: t.slice(0, 0), "no rows"),
        (lambda t: t.set_column(t.column_names.index("era"), "era", t["affinity"]), "not lists of 3"),
    ],
)
def test_malformed_request_files_are_refused(
    tmp_path: Path, tables: Tables, change: Callable[..., object], message: str
) -> None:
    out = prepared(tmp_path / "a", tables)
    features, tasks = read_features(out)
    path = out / "test.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(UgsepError, match=message):
        read_rows(path, features, tasks)


def test_missing_files_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match="run 'make data'"):
        read_features(tmp_path)
    with pytest.raises(UgsepError, match="run 'make data'"):
        read_rows(tmp_path / "train.parquet", (), ("like",))
    (tmp_path / "features.json").write_text(json.dumps({"features": []}))
    with pytest.raises(UgsepError, match="missing or malformed"):
        read_features(tmp_path)
