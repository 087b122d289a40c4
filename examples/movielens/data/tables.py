"""The raw tables as arrays: ratings, users and items, with ids from 1."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from numpy.typing import NDArray

from graphs.base.errors import UgsepError, first_line

Ints = NDArray[np.int64]

COLUMNS = {
    "inter": ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
    "user": ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"),
    "item": ("item_id:token", "release_year:token", "class:token_seq"),
    "title": ("item_id:token", "movie_title:token_seq", "release_year:token"),
}
GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
OCCUPATIONS = (
    *("administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare"),
    *("homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman"),
    *("scientist", "student", "technician", "writer"),
)


@dataclass(frozen=True)
class Ratings:
    """One row per rating, all int64 [R]: user and item from 1, rating 1..5, time in seconds since 1970."""

    user: Ints
    item: Ints
    rating: Ints
    time: Ints

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Ratings:
        """Return the chosen rows."""
        return Ratings(self.user[rows], self.item[rows], self.rating[rows], self.time[rows])


@dataclass(frozen=True)
class Users:
    """Row i is user i, row 0 is unused; int64 [U + 1] each.

    ``age`` in years, ``gender`` 1 (M) or 2 (F), ``occupation`` from 1, ``zip_prefix`` 1..10 for the first
    digit, 11 for a letter. 0 is unknown.
    """

    age: Ints
    gender: Ints
    occupation: Ints
    zip_prefix: Ints


@dataclass(frozen=True)
class Items:
    """Row i is item i, row 0 is unused: ``year`` int64 [I + 1], 0 unknown; ``genres`` bool [I + 1, 18]."""

    year: Ints
    genres: NDArray[np.bool_]


def read_ratings(text: bytes) -> Ratings:
    """Parse the ``.inter`` table; rows are sorted by (time, user, item), so file order does not matter.

    Raises:
        UgsepError: a column is missing, a value is not a number or out of range, the table is empty.
    """
    table = _parse("inter", text)
    user, item, rating, time = (_integers("inter", table, name) for name in COLUMNS["inter"])
    if len(user) == 0:
        raise UgsepError("ml-100k.inter has no ratings; download the data again")
    if rating.min() < 1 or rating.max() > 5 or user.min() < 1 or item.min() < 1 or time.min() < 0:
        raise UgsepError(
            "ml-100k.inter: a rating outside 1..5, an id below 1 or a negative time; download the data again"
        )
    order = np.lexsort((item, user, time))
    return Ratings(user, item, rating, time).take(order)


def read_users(text: bytes) -> Users:
    """Parse the ``.user`` table.

    Raises:
        UgsepError: a column is missing or a value is not a number.
    """
    table = _parse("user", text)
    ids = _integers("user", table, "user_id:token")
    size = int(ids.max(initial=0)) + 1
    zip_code = [str(z)[:1] for z in table.column("zip_code:token").to_pylist()]
    return Users(
        age=_by_id(size, ids, _integers("user", table, "age:token")),
        gender=_by_id(size, ids, _codes(table, "gender:token", ("M", "F"))),
        occupation=_by_id(size, ids, _codes(table, "occupation:token", OCCUPATIONS)),
        zip_prefix=_by_id(size, ids, np.array([int(z) + 1 if z.isdigit() else 11 for z in zip_code], np.int64)),
    )


def read_items(text: bytes) -> Items:
    """Parse the ``.item`` table; a year that is not a number becomes 0, a genre outside ``GENRES`` is ignored.

    Raises:
        UgsepError: a column is missing or an id is not a number.
    """
    table = _parse("item", text)
    ids = _integers("item", table, "item_id:token")
    size = int(ids.max(initial=0)) + 1
    years = [int(y) if str(y).isdigit() else 0 for y in table.column("release_year:token").to_pylist()]
    genres = np.zeros((size, len(GENRES)), np.bool_)
    for row, names in zip(ids, table.column("class:token_seq").to_pylist(), strict=True):
        known = [GENRES.index(name) for name in str(names).split() if name in GENRES]
        genres[row, known] = True
    return Items(_by_id(size, ids, np.array(years, np.int64)), genres)


def read_titles(text: bytes) -> dict[int, str]:
    """Parse the titles of the ``.item`` table, by item id: ``Toy Story (1995)``, without the year if it is unknown.

    Raises:
        UgsepError: a column is missing or an id is not a number.
    """
    table = _parse("item", text, COLUMNS["title"])
    titles, years = (table.column(column).to_pylist() for column in COLUMNS["title"][1:])
    ids = _integers("item", table, "item_id:token").tolist()
    return {
        i: f"{title} ({year})" if year.isdigit() else title for i, title, year in zip(ids, titles, years, strict=True)
    }


def _parse(name: str, text: bytes, columns: tuple[str, ...] = ()) -> pa.Table:
    types = {column: pa.string() for column in columns or COLUMNS[name]}
    try:
        return pc.read_csv(
            io.BytesIO(text),
            parse_options=pc.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pc.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UgsepError(f"ml-100k.{name}: {first_line(error)}; download the data again") from error


def _integers(name: str, table: pa.Table, column: str) -> Ints:
    try:
        return np.array(table.column(column).to_pylist(), np.float64).astype(np.int64)
    except (TypeError, ValueError) as error:
        raise UgsepError(
            f"ml-100k.{name}: column '{column}' has a value that is not a number; download the data again"
        ) from error


def _codes(table: pa.Table, column: str, known: tuple[str, ...]) -> Ints:
    code = {value: i for i, value in enumerate(known, start=1)}
    return np.array([code.get(value, 0) for value in table.column(column).to_pylist()], np.int64)


def _by_id(size: int, ids: Ints, values: Ints) -> Ints:
    out = np.zeros(size, np.int64)
    out[ids] = values
    return out
