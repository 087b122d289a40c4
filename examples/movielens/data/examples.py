"""Held-out requests with film titles and what the user really liked, for the page of ``ugsep serve``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from engines.bundle.fixture_file import Fixture, Fixtures
from examples.movielens.data.features import TASKS, Columns
from examples.movielens.data.requests import Requests
from examples.movielens.data.tables import OCCUPATIONS, Users
from graphs.base.features import Feature

Ints = NDArray[np.int64]

EXAMPLES = 40  # users, one request each
FEWEST = 16  # candidates
FEWEST_RATED = 10  # films in the history, so that the user graph has something to read
NEW = "a film newer than the training data"
GENDERS = ("person", "man", "woman")
#: A leading article that the titles carry at the end: "Postino, Il".
ARTICLE = re.compile(r"^(.+), (The|A|An|Il|La|Le|Les|Das|Der|Die|El|L')(?= \(|$)( \(.*\))?$")


def choose(
    features: tuple[Feature, ...],
    columns: Columns,
    request_id: Ints,
    requests: Requests,
    users: Users,
    titles: Mapping[int, str],
    fewest: int = FEWEST,
    rated: int = FEWEST_RATED,
) -> Fixtures:
    """Return the first suitable request of ``EXAMPLES`` users, as examples for a server.

    A request is suitable if it has at least ``fewest`` candidates, all of them films of the training data, some liked
    and some not, and a history of at least ``rated`` films. ``columns`` hold the rows of the requests
    ``request_id`` (int64 [R]); ``titles`` has a title per item id.
    """
    chosen: dict[int, Fixture] = {}
    shown: set[int] = set()
    for request, rows in _runs(request_id):
        user = int(requests.user[request])
        likes = columns[TASKS[0]][rows]
        known = columns["item_id"][rows]
        history = np.count_nonzero(columns["recent_items"][rows.start])
        if user in chosen or rows.stop - rows.start < fewest or history < rated:
            continue
        if 0 in known or likes.all() or not likes.any():
            continue
        user_rows = slice(rows.start, rows.start + 1)
        chosen[user] = Fixture(
            name=f"user-{user}",
            user={f.name: columns[f.name][user_rows] for f in features if f.side == "user"},
            items={f.name: columns[f.name][rows] for f in features if f.side == "item"},
            label=_describe(user, users),
            labels={task: columns[task][rows] for task in TASKS},
        )
        shown.update(known.tolist())
        if len(chosen) == EXAMPLES:
            break
    names = {str(item): display_title(titles[item]) for item in sorted(shown) if item in titles}
    return Fixtures(tuple(chosen[user] for user in sorted(chosen)), names={"item_id": {"0": NEW, **names}})


def display_title(title: str) -> str:
    """Return a title as a person writes it: ``The Usual Suspects (1995)`` for ``Usual Suspects, The (1995)``."""
    found = ARTICLE.match(title)
    if found is None:
        return title
    main, article, rest = found.groups()
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{main}{rest or ''}"


def _runs(request_id: Ints) -> Iterator[tuple[int, slice]]:
    """Yield each request with its rows, which are contiguous."""
    starts = np.flatnonzero(np.diff(request_id, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(request_id)], strict=True):
        yield int(request_id[start]), slice(int(start), int(stop))


def _describe(user: int, users: Users) -> str:
    job = int(users.occupation[user])
    work = OCCUPATIONS[job - 1] if job else "unknown"
    who = GENDERS[int(users.gender[user])] if work in ("none", "other", "unknown") else work
    return f"User {user}: {who}, {users.age[user]}"
