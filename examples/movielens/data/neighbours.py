"""Item-item agreement: did users who rated the items in this user's history rate the candidate alike?

Item-to-item counts end on the day before a request, the user's own history at its start.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.movielens.data.past import index_events, window
from examples.movielens.data.requests import DAY, Requests
from examples.movielens.data.tables import Ratings

Floats = NDArray[np.float64]

# Agreement is divided by (count + SHRINK), because rare pairs carry little evidence.
SHRINK = 10.0


def neighbour_scores(ratings: Ratings, liked: NDArray[np.bool_], requests: Requests) -> Floats:
    """Score each candidate against the user's history; float64 [R, 3].

    Columns: sum of sign * agreement over the history / sqrt(history + 1); the same weighted by the
    absolute agreement, in [-1, 1]; log1p of the co-rating count averaged over the history.
    """
    users, items = int(ratings.user.max()) + 1, int(ratings.item.max()) + 1
    sign = np.where(liked, 1.0, -1.0)
    seen = np.zeros((users, items), np.float32)  # +1 liked, -1 not, 0 unrated
    agree = np.zeros((items, items), np.float32)  # integers, exact in float32 in any summation order
    both = np.zeros((items, items), np.float32)
    by_user = index_events(ratings.user, ratings.time)
    first, last = window(by_user, requests.user, requests.start)
    out = np.zeros((len(ratings.user), 3))
    event_day = ratings.time // DAY
    request_day = requests.start // DAY
    for day in np.unique(event_day):
        for r in np.flatnonzero(request_day == day):
            history = by_user.order[first[r] : last[r]]
            if len(history) == 0:
                continue
            rows = requests.rows(int(r))
            pairs = np.ix_(ratings.item[rows], ratings.item[history])
            count = both[pairs].astype(np.float64)  # [candidates, history]
            weight = agree[pairs] / (count + SHRINK)
            vote = (weight * sign[history]).sum(axis=1)
            out[rows, 0] = vote / np.sqrt(len(history) + 1.0)
            out[rows, 1] = vote / (np.abs(weight).sum(axis=1) + 0.5)
            out[rows, 2] = np.log1p(count.mean(axis=1))
        today = np.flatnonzero(event_day == day)
        for user in np.unique(ratings.user[today]):
            new = today[ratings.user[today] == user]
            before = seen[user].copy()
            seen[user, ratings.item[new]] = sign[new]
            after = seen[user]
            known = np.flatnonzero(after)
            pairs, old, now = np.ix_(known, known), before[known], after[known]
            agree[pairs] += np.outer(now, now) - np.outer(old, old)
            both[pairs] += 1 - np.outer(old != 0, old != 0)
    return out
