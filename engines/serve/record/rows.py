"""What a recorded file holds of an answered request: one row per candidate, the columns of a request file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engines.backends.contract import Array
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError

__all__ = ["REQUEST_ID", "SERVED", "Column", "UserRows", "by_user", "columns_of"]

#: The column that tells requests apart, as in any request file.
REQUEST_ID = "request_id"
#: Before a task's name: the logits that were served. A column named like a task would be read as its labels.
SERVED = "served."


@dataclass(frozen=True)
class Column:
    """A column of a recorded file: its name, NumPy dtype name and the shape of one row."""

    name: str
    dtype: str
    row_shape: tuple[int, ...]


@dataclass(frozen=True)
class UserRows:
    """One user's part of an answered request: ``user`` has one row, ``items`` and ``served`` (the logits) N rows."""

    user: Mapping[str, Array]
    items: Mapping[str, Array]
    served: Mapping[str, Array]

    @property
    def rows(self) -> int:
        """The number of candidates N."""
        return len(next(iter(self.items.values())))

    @property
    def bytes(self) -> int:
        """The size of the columns before compression: the user's features are repeated for every candidate."""
        repeated = self.rows * sum(value.nbytes for value in self.user.values())
        return repeated + sum(value.nbytes for part in (self.items, self.served) for value in part.values())


def by_user(request: ScoreRequest, scores: Mapping[str, Array]) -> Iterator[UserRows]:
    """Yield the part of every user of a request that has candidates, in the order of the users."""
    if request.user_index is None:
        yield UserRows(request.user, request.items, scores)
        return
    order = np.argsort(request.user_index, kind="stable")
    users, starts = np.unique(request.user_index[order], return_index=True)
    for user, mine in zip(users.tolist(), np.split(order, starts[1:]), strict=True):
        yield UserRows(
            {name: value[user : user + 1] for name, value in request.user.items()},
            {name: value[mine] for name, value in request.items.items()},
            {task: value[mine] for task, value in scores.items()},
        )


def columns_of(part: UserRows) -> tuple[Column, ...]:
    """Return the columns that hold a request, sorted by name after the request's number.

    Raises:
        UgsepError: two columns would have the same name.
    """
    named = [(name, value) for side in (part.user, part.items) for name, value in side.items()]
    named += [(SERVED + task, value) for task, value in part.served.items()]
    found = [Column(name, value.dtype.name, value.shape[1:]) for name, value in sorted(named, key=lambda n: n[0])]
    names = [REQUEST_ID, *(column.name for column in found)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UgsepError(f"feature '{twice}' has the name of another column of a recorded file; rename it")
    return (Column(REQUEST_ID, "int64", ()), *found)
