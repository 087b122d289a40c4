"""The features of a request: declared for the models, and computed only from earlier ratings.

Smoothing and scaling use constants, never statistics of the data, so no feature leaks the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.movielens.data.neighbours import neighbour_scores
from examples.movielens.data.past import index_events, latest_before, sums_before
from examples.movielens.data.requests import DAY, Requests
from examples.movielens.data.tables import GENRES, OCCUPATIONS, Items, Ratings, Users
from graphs.base.features import Feature

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]

TASKS = ("like",)
LIKE = 4  # ratings of 4 and 5 are likes
RECENT = 20  # length of the history sequences
MAX_GENRES = 6
FIRST_YEAR, YEARS = 1920, 80
AGES = 16  # five-year steps, 0 unknown
GROUP_RATE = 0.5  # prior share of likes
STEP = 1024.0  # residuals are rounded to 1/STEP, so their sums are exact in any order


def declare(users: int, items: int) -> tuple[Feature, ...]:
    """Return the features for ids 0..users and 0..items (0 is unknown); one token per ``group``.

    Eight user groups and eight item groups; the last three item groups are crosses with the user.
    """
    ids, genres = items + 1, len(GENRES)
    return (
        Feature("user_id", "user", "id", vocab=users + 1, group="user_id"),
        Feature("age", "user", "id", vocab=AGES, group="age"),
        Feature("gender", "user", "id", vocab=3, group="gender"),
        Feature("occupation", "user", "id", vocab=len(OCCUPATIONS) + 1, group="occupation"),
        Feature("zip_prefix", "user", "id", vocab=12, group="zip_prefix"),
        Feature("recent_items", "user", "sequence", vocab=ids, width=RECENT, group="history", table="item_id"),
        Feature("recent_likes", "user", "sequence", vocab=ids, width=RECENT, group="history", table="item_id"),
        Feature("recent_dislikes", "user", "sequence", vocab=ids, width=RECENT, group="history", table="item_id"),
        Feature("activity", "user", "dense", width=9, group="activity"),
        Feature("clock", "user", "dense", width=4, group="activity"),
        Feature("taste", "user", "dense", width=genres, group="taste"),
        Feature("genre_share", "user", "dense", width=genres, group="taste"),
        Feature("item_id", "item", "id", vocab=ids, group="item_id"),
        Feature("year", "item", "id", vocab=YEARS + 1, group="year"),
        Feature("genres", "item", "sequence", vocab=genres + 1, width=MAX_GENRES, group="genres"),
        Feature("popularity", "item", "dense", width=4, group="popularity"),
        Feature("quality", "item", "dense", width=5, group="quality"),
        Feature("affinity", "item", "dense", width=6, group="affinity"),
        Feature("era", "item", "dense", width=3, group="affinity"),
        Feature("peers", "item", "dense", width=6, group="peers"),
        Feature("neighbours", "item", "dense", width=3, group="neighbours"),
    )


@dataclass(frozen=True)
class Moment:
    """The ratings in request order, and for every row the time that its inputs must precede."""

    ratings: Ratings
    requests: Requests
    liked: NDArray[np.bool_]
    start: Ints  # [R]

    @property
    def counts(self) -> Floats:
        """Per rating: 1, liked, rating, rating is 5, rating squared; [R, 5]."""
        stars = self.ratings.rating.astype(np.float64)
        return np.stack([np.ones_like(stars), self.liked, stars, stars == 5, stars**2], axis=1)

    def before(self, key: Ints, values: Floats, earlier: int = 0) -> Floats:
        """Sum ``values`` [R, C] per key up to ``earlier`` seconds before each row's request; [R, C]."""
        return sums_before(index_events(key, self.ratings.time), values, key, self.start - earlier)


def compute(ratings: Ratings, requests: Requests, users: Users, items: Items) -> Columns:
    """Return one column per declared feature, and the label ``like`` float32 [R], for grouped ratings."""
    moment = Moment(ratings, requests, ratings.rating >= LIKE, requests.start[requests.of_row])
    rate = _item_rate(moment)
    residual = np.round((moment.liked - rate) * STEP) / STEP  # leniency relative to earlier raters of the item
    taste, share, history = _taste(moment, items, residual)
    columns: Columns = {
        "user_id": ratings.user,
        "age": np.where(users.age > 0, np.clip(users.age // 5, 1, AGES - 1), 0)[ratings.user],
        "gender": users.gender[ratings.user],
        "occupation": users.occupation[ratings.user],
        "zip_prefix": users.zip_prefix[ratings.user],
        **_recent(moment),
        "activity": _activity(moment, residual),
        "clock": _clock(moment.start),
        "taste": taste,
        "genre_share": share,
        "item_id": ratings.item,
        "year": np.where(items.year > 0, np.clip(items.year - FIRST_YEAR + 1, 1, YEARS), 0)[ratings.item],
        "genres": _genre_lists(items)[ratings.item],
        "popularity": _popularity(moment),
        "quality": _quality(moment),
        "affinity": _affinity(items.genres[ratings.item], taste, share, history),
        "era": _era(moment, items, residual),
        "peers": _peers(moment, users, rate, residual),
        "neighbours": neighbour_scores(ratings, moment.liked, requests),
    }
    for name, column in columns.items():
        columns[name] = column.astype(np.float32 if column.dtype == np.float64 else np.int64)
    return {**columns, TASKS[0]: moment.liked.astype(np.float32)}


def _item_rate(moment: Moment) -> Floats:
    """Return each candidate's share of likes so far, [R], with a prior of 4 ratings at ``GROUP_RATE``."""
    count, likes = moment.before(moment.ratings.item, moment.counts[:, :2]).T
    return np.asarray((likes + 4 * GROUP_RATE) / (count + 4))


def _recent(moment: Moment) -> Columns:
    def last(chosen: NDArray[np.bool_]) -> Ints:
        events = moment.ratings.take(chosen)
        if len(events.user) == 0:
            return np.zeros((len(chosen), RECENT), np.int64)
        past = index_events(events.user, events.time)
        return latest_before(past, events.item, RECENT, moment.ratings.user, moment.start)

    everything = np.ones_like(moment.liked)
    return {
        "recent_items": last(everything),
        "recent_likes": last(moment.liked),
        "recent_dislikes": last(~moment.liked),
    }


def _activity(moment: Moment, residual: Floats) -> Floats:
    user, time, start = moment.ratings.user, moment.ratings.time, moment.start
    values = np.column_stack([moment.counts, moment.ratings.rating <= 2, residual])
    count, likes, stars, fives, squares, low, kinder = moment.before(user, values).T
    past = index_events(user, time)
    since_last = start - latest_before(past, time, 1, user, start)[:, 0]
    born = np.full(int(user.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(born, user, time)
    today = count - moment.before(user, moment.counts[:, :1], earlier=DAY)[:, 0]
    mean = (stars + 3.5 * 2) / (count + 2)
    spread = np.sqrt(np.maximum((squares + 13.5 * 2) / (count + 2) - mean**2, 0.0))
    columns = [
        np.log1p(count) / 4,
        (likes + 2 * GROUP_RATE) / (count + 2) - GROUP_RATE,
        mean - 3.5,
        spread - 1.0,
        kinder / (count + 5),
        (fives - low) / (count + 5),
        np.where(count > 0, np.log1p(since_last / 3600) / 4, 0.0),
        np.log1p(today) / 4,
        np.log1p((start - born[user]) / DAY) / 3,
    ]
    return np.stack(columns, axis=1)


def _clock(start: Ints) -> Floats:
    day, week = 2 * np.pi * (start % DAY) / DAY, 2 * np.pi * (start % (7 * DAY)) / (7 * DAY)
    return np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], axis=1)


def _taste(moment: Moment, items: Items, residual: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the user's leniency, share of the history and number of ratings per genre; [R, 18] each."""
    genres = items.genres[moment.ratings.item].astype(np.float64)
    count = moment.before(moment.ratings.user, genres)
    kinder = moment.before(moment.ratings.user, genres * residual[:, None])
    total = moment.before(moment.ratings.user, moment.counts[:, :1])
    return 2 * kinder / (count + 4), 2 * count / (total + 4), count


def _genre_lists(items: Items) -> Ints:
    """Return the first ``MAX_GENRES`` genres of each item, from 1, padded with 0; int64 [I + 1, MAX_GENRES]."""
    numbered = np.where(items.genres, np.arange(1, len(GENRES) + 1), len(GENRES) + 1)
    first = np.sort(numbered, axis=1)[:, :MAX_GENRES]
    return np.where(first > len(GENRES), 0, first).astype(np.int64)


def _popularity(moment: Moment) -> Floats:
    item, one = moment.ratings.item, moment.counts[:, :1]
    total = moment.before(item, one)[:, 0]
    week = total - moment.before(item, one, earlier=7 * DAY)[:, 0]
    month = total - moment.before(item, one, earlier=30 * DAY)[:, 0]
    trend = np.log1p(week) - np.log1p(month * 7 / 30)
    return np.stack([np.log1p(total) / 4, np.log1p(week) / 3, np.log1p(month) / 4, trend], axis=1)


def _quality(moment: Moment) -> Floats:
    item, user = moment.ratings.item, moment.ratings.user
    own_count, own_likes = moment.before(user, moment.counts[:, :2]).T
    surprise = np.round((moment.liked - (own_likes + 2 * GROUP_RATE) / (own_count + 2)) * STEP) / STEP
    values = np.column_stack([moment.counts, surprise])
    count, likes, stars, fives, squares, kinder = moment.before(item, values).T
    mean = (stars + 3.3 * 3) / (count + 3)
    columns = [
        4 * ((likes + 4 * GROUP_RATE) / (count + 4) - GROUP_RATE),
        mean - 3.3,
        4 * (fives / (count + 4) - 0.2),
        np.sqrt(np.maximum((squares + 12.0 * 3) / (count + 3) - mean**2, 0.0)) - 1.0,
        4 * kinder / (count + 4),
    ]
    return np.stack(columns, axis=1)


def _affinity(genres: NDArray[np.bool_], taste: Floats, share: Floats, history: Floats) -> Floats:
    """Return the user's genre statistics at the candidate's genres; [R, 6]."""
    many = np.maximum(genres.sum(axis=1), 1)
    none = ~genres.any(axis=1)
    top = np.where(none, 0.0, np.where(genres, taste, -np.inf).max(axis=1, initial=-np.inf))
    low = np.where(none, 0.0, np.where(genres, taste, np.inf).min(axis=1, initial=np.inf))
    seen = (history * genres).sum(axis=1)
    weighted = (taste * history * genres).sum(axis=1) / (seen + 4)
    columns = [
        (taste * genres).sum(axis=1) / many,
        top,
        low,
        weighted,
        (share * genres).sum(axis=1) / many,
        np.log1p(seen) / 4,
    ]
    return np.stack(columns, axis=1)


def _era(moment: Moment, items: Items, residual: Floats) -> Floats:
    """Return the user's leniency to the candidate's decade, ratings in it, distance to the mean year; [R, 3]."""
    year = items.year[moment.ratings.item]
    known = (year > 0).astype(np.float64)
    decade = np.where(year > 0, np.clip((year - FIRST_YEAR) // 10 + 1, 1, 8), 0)
    in_decade = moment.before(moment.ratings.user * 9 + decade, np.column_stack([known, residual]))
    liked_years = np.column_stack([known * moment.liked, known * moment.liked * year])
    count, years = moment.before(moment.ratings.user, liked_years).T
    distance = np.where((count > 0) & (year > 0), year - years / np.maximum(count, 1), 0.0)
    return np.stack(
        [4 * in_decade[:, 1] / (in_decade[:, 0] + 4), np.log1p(in_decade[:, 0]) / 4, distance / 20], axis=1
    )


def _peers(moment: Moment, users: Users, rate: Floats, residual: Floats) -> Floats:
    """Return how far users of the same gender, age and occupation deviate from the candidate's rate; [R, 6]."""
    user = moment.ratings.user
    columns = []
    for attribute in (users.gender, np.clip(users.age // 10, 0, 9), users.occupation):
        key = moment.ratings.item * 32 + attribute[user]
        count, likes = moment.before(key, moment.counts[:, :2]).T
        columns += [4 * ((likes + 6 * rate) / (count + 6) - rate), np.log1p(count) / 4]
    return np.stack(columns, axis=1)
