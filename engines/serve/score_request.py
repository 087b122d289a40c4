"""One request for scores, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engines.backends.contract import Array

__all__ = ["ScoreRequest", "Scored", "Warmed"]


class ScoreRequest(NamedTuple):  # a frozen dataclass takes several times as long to make, while a caller waits
    """Candidates to score for one user, or for several.

    ``user`` has one row, or U rows if ``user_index`` (int64 [N], each candidate's row of ``user``) is given;
    ``items`` has N rows. ``deadline`` is a time of ``time.monotonic()`` after which nobody waits for the scores.
    """

    user: Mapping[str, Array]
    items: Mapping[str, Array]
    user_index: Array | None = None
    deadline: float | None = None


class Scored(NamedTuple):
    """The logits of every task, float32 [N], and how they were made.

    ``hits`` and ``misses`` count the request's users by whether their state was in the cache; ``batch_users`` is the
    number of users in the item call, of this and other requests. The seconds are those of the shared engine calls, so
    requests of one batch report the same; ``user_seconds`` is 0 if every state was cached.
    """

    scores: dict[str, Array]
    hits: int
    misses: int
    user_seconds: float
    item_seconds: float
    batch_users: int


class Warmed(NamedTuple):
    """The states of U users by name, [U, ...], how many were cached, and the seconds that the others took."""

    states: dict[str, Array]
    hits: int
    misses: int
    seconds: float
