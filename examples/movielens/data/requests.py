"""Group ratings into requests: the ratings of one user on one day, in pages of at most ``PAGE`` candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.movielens.data.tables import Ratings

Ints = NDArray[np.int64]

DAY = 86_400  # seconds; days are UTC
PAGE = 64


@dataclass(frozen=True)
class Requests:
    """Requests over sorted ratings: request r owns the rows ``first[r]`` to ``first[r + 1]``.

    ``user`` int64 [Q]; ``start`` int64 [Q], the time of the request's first rating (features see only what is
    strictly earlier); ``first`` int64 [Q + 1].
    """

    user: Ints
    start: Ints
    first: Ints

    def rows(self, request: int) -> slice:
        """Return the rows of one request."""
        return slice(int(self.first[request]), int(self.first[request + 1]))

    @property
    def sizes(self) -> Ints:
        """Candidates per request, int64 [Q]."""
        return np.diff(self.first)

    @property
    def of_row(self) -> Ints:
        """Request of each row, int64 [R]."""
        return np.repeat(np.arange(len(self.user)), self.sizes)


def group(ratings: Ratings, page: int = PAGE) -> tuple[Ratings, Requests]:
    """Reorder ratings so that the rows of a request are contiguous, requests sorted by start time, and index them.

    Most users rate everything on one day; pages give the later candidates a history. Rows of a request are in
    item order, so that the order of clicks cannot leak into a model.
    """
    day = ratings.time // DAY
    by_user = np.lexsort((ratings.item, ratings.time, ratings.user))
    user, day = ratings.user[by_user], day[by_user]
    new = np.r_[True, (user[1:] != user[:-1]) | (day[1:] != day[:-1])]
    visit_first = np.flatnonzero(new)[np.cumsum(new) - 1]
    new |= (np.arange(len(user)) - visit_first) % page == 0
    request = np.cumsum(new) - 1
    start = ratings.time[by_user][new]
    rank = np.empty(len(start), np.int64)  # rank of each request by start
    rank[np.lexsort((user[new], start))] = np.arange(len(start))
    order = by_user[np.lexsort((ratings.item[by_user], rank[request]))]
    sizes = np.bincount(rank[request], minlength=len(start))
    first = np.r_[0, np.cumsum(sizes)].astype(np.int64)
    grouped = ratings.take(order)
    return grouped, Requests(grouped.user[first[:-1]], np.sort(start), first)
