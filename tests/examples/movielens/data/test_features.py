from dataclasses import replace

import numpy as np
import pytest

from examples.movielens.data.features import Columns, compute, declare
from examples.movielens.data.past import index_events, latest_before, sums_before
from examples.movielens.data.requests import DAY, group
from examples.movielens.data.tables import Items, Ratings, Users, read_items, read_ratings, read_users
from graphs.base.errors import UgsepError
from graphs.base.features import of_side

Tables = tuple[Ratings, Users, Items]


def columns_of(tables: Tables, page: int = 4) -> tuple[Columns, Ratings, np.ndarray]:
    ratings, users, items = tables
    grouped, requests = group(ratings, page)
    return compute(grouped, requests, users, items), grouped, requests.start[requests.of_row]


def test_past_sums_and_sequences_against_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    key, time, value = draw.integers(0, 4, 50), draw.integers(0, 9, 50), draw.integers(1, 99, 50)
    past = index_events(key, time)
    got_sum = sums_before(past, value[:, None].astype(float), key, time)
    got_last = latest_before(past, value, 3, key, time)
    got_earlier = sums_before(past, value[:, None].astype(float), key, time - 4)
    some_past = 0
    for row in range(50):
        before = np.flatnonzero((key == key[row]) & (time < time[row]))
        before = before[np.argsort(time[before], kind="stable")]
        assert got_sum[row, 0] == value[before].sum()
        assert got_earlier[row, 0] == value[(key == key[row]) & (time < time[row] - 4)].sum()
        newest = [*value[before][::-1][:3], 0, 0, 0][:3]
        assert got_last[row].tolist() == newest
        some_past += len(before) > 0
    assert some_past > 25


def test_the_future_does_not_reach_a_feature(tables: Tables) -> None:
    ratings, users, items = tables
    columns, grouped, start = columns_of(tables)
    now = int(np.median(start))
    # From `now` on, ratings are inverted; earlier ratings, and who rated what and when, are unchanged.
    flipped = replace(ratings, rating=np.where(ratings.time >= now, 6 - ratings.rating, ratings.rating))
    changed, again, _ = columns_of((flipped, users, items))
    past_rows, label = start <= now, columns.pop("like")
    changed.pop("like")
    assert np.array_equal(grouped.item, again.item)
    assert past_rows.sum() > 50
    for name, column in columns.items():
        assert np.array_equal(column[past_rows], changed[name][past_rows]), name
    different = {name for name in columns if not np.array_equal(columns[name], changed[name])}
    assert {"activity", "taste", "quality", "affinity", "peers", "neighbours", "recent_likes"} <= different
    assert 0 < label.mean() < 1


def test_dropping_the_future_changes_nothing(tables: Tables) -> None:
    ratings, users, items = tables
    columns, _, start = columns_of(tables)
    now = (int(np.median(start)) // DAY) * DAY  # a whole day, so that requests stay whole
    early, _, _ = columns_of((ratings.take(ratings.time < now), users, items))
    kept = start < now
    assert 50 < kept.sum() < len(kept)
    for name, column in early.items():
        assert np.array_equal(columns[name][kept], column), name


def test_a_rating_does_not_reach_the_features_of_its_own_request(tables: Tables) -> None:
    _, users, items = tables
    columns, grouped, start = columns_of(tables)
    last = start == start.max()
    flipped = replace(grouped, rating=np.where(last, 6 - grouped.rating, grouped.rating))
    changed, _, _ = columns_of((flipped, users, items))
    for name in columns.keys() - {"like"}:
        assert np.array_equal(columns[name][last], changed[name][last]), name


def test_user_features_agree_within_a_request(tables: Tables) -> None:
    ratings, users, items = tables
    grouped, requests = group(ratings, 4)
    columns = compute(grouped, requests, users, items)
    assert requests.sizes.max() == 4
    for feature in of_side(declare(len(users.age) - 1, len(items.year) - 1), "user"):
        for request in np.flatnonzero(requests.sizes > 1):
            rows = columns[feature.name][requests.rows(int(request))]
            assert (rows == rows[0]).all(), feature.name


def test_every_declared_feature_is_there_in_its_kind_and_range(tables: Tables) -> None:
    columns, grouped, _ = columns_of(tables)
    declared = declare(12, 30)
    assert columns.keys() == {f.name for f in declared} | {"like"}
    for f in declared:
        column = columns[f.name]
        assert column.shape == (len(grouped.user), *f.row_shape), f.name
        assert column.dtype == (np.float32 if f.kind == "dense" else np.int64), f.name
        assert np.isfinite(column).all()
        assert f.kind == "dense" or (0 <= column.min() and column.max() < f.vocab), f.name
        assert f.group
    for side in ("user", "item"):
        assert len({f.group for f in of_side(declared, side)}) == 8


def test_pages_and_days_bound_a_request(tables: Tables) -> None:
    ratings, _, _ = tables
    grouped, requests = group(ratings, 5)
    assert requests.sizes.sum() == len(ratings.user)
    for request in range(len(requests.user)):
        rows = requests.rows(request)
        assert (
            len({(int(u), int(t) // DAY) for u, t in zip(grouped.user[rows], grouped.time[rows], strict=True)}) == 1
        )
        assert requests.start[request] == grouped.time[rows].min()
        assert (np.diff(grouped.item[rows]) > 0).all()
    assert (np.diff(requests.start) >= 0).all()


def test_file_order_does_not_matter(raw: dict[str, bytes]) -> None:
    head, *rows = raw["inter"].decode().splitlines()
    back = "\n".join([head, *reversed(rows)]).encode()
    assert np.array_equal(read_ratings(raw["inter"]).item, read_ratings(back).item)


def test_odd_values_are_unknown_not_wrong(tables: Tables) -> None:
    _, users, items = tables
    assert (items.year[7], items.year[8] >= 1925) == (0, True)  # item 7's year is "unkonwn"
    assert (users.occupation[2], users.occupation[3] > 0) == (0, True)  # juggler, writer
    assert set(users.zip_prefix[1:]) == {10, 11}  # 9...., V....


@pytest.mark.parametrize(
    ("table", "find", "put", "message"),
    [
        ("inter", b"timestamp:float", b"time:float", "timestamp:float"),
        ("inter", b"\t875", b"\tsoon", "column 'timestamp:float' has a value that is not a number"),
        ("inter", b"1\t1\t", b"0\t0\t", "a rating outside"),
        ("user", b"age:token", b"years:token", "age:token"),
        ("item", b"item_id:token", b"id:token", "item_id:token"),
    ],
)
def test_malformed_tables_are_refused(
    raw: dict[str, bytes], table: str, find: bytes, put: bytes, message: str
) -> None:
    read = {"inter": read_ratings, "user": read_users, "item": read_items}[table]
    assert find in raw[table]
    with pytest.raises(UgsepError, match=message) as error:
        read(raw[table].replace(find, put))
    assert "\n" not in str(error.value)


def test_an_empty_ratings_table_is_refused(raw: dict[str, bytes]) -> None:
    with pytest.raises(UgsepError, match="no ratings"):
        read_ratings(raw["inter"].splitlines()[0] + b"\n")
