"""A pair of engines whose results do not depend on the rest of a call: batches must match single calls bit by bit.

They count their calls, refuse to run after ``close``, and can be told to be slow or to fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.checks import check_feeds
from engines.backends.contract import Array
from engines.backends.engine_spec import Profile, Rows
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX, USER_ROWS

MAX_USERS, MAX_CANDIDATES = 4, 12
REFUSED_ID = 99  # the engines refuse this id, which no check before them knows
OVERFLOW = 1e30  # its square is infinite in FP32
VOCABULARIES = {"user_id": 100, "item_id": 100}
USER = (TensorSpec("user_id", "int64", ("users",)), TensorSpec("profile", "float32", ("users", 3)))
ITEM = (TensorSpec("item_id", "int64", ("candidates",)), TensorSpec("quality", "float32", ("candidates", 2)))
STATE = TensorSpec("state", "float32", ("users", 2, 3))


def built(index: tuple[str, ...] | None = (USER_ROWS,)) -> tuple[BuiltEngine, BuiltEngine]:
    """Return the records of both engines; ``index`` is the shape of ``user_index``, None for an engine without it."""
    profiles = (Profile(Rows(1, 1, MAX_USERS), Rows(1, 1, MAX_CANDIDATES)),)
    extra = () if index is None else (TensorSpec(USER_INDEX, "int64", index),)
    click = TensorSpec("click", "float32", ("candidates",))
    user = BuiltEngine("test", "user", "fp32", (), 0, USER, (STATE,), profiles=profiles)
    return user, BuiltEngine("test", "item", "fp32", (), 0, (*ITEM, STATE, *extra), (click,), profiles=profiles)


def states(user: Mapping[str, Array]) -> Array:
    """Return the state of each row."""
    ids = user["user_id"].astype(np.float32)[:, None]
    return np.stack([user["profile"] * np.float32(3) + ids, user["profile"] - ids], axis=1)


def logits(items: Mapping[str, Array], per_candidate: Array) -> Array:
    """Return each candidate's logit from its row of state."""
    quality = items["quality"]
    with np.errstate(over="ignore"):
        own = quality[:, 0] * quality[:, 0] + quality[:, 1]
    return own * per_candidate[:, 0, 0] + per_candidate[:, 1, 2] * items["item_id"].astype(np.float32)


class Exact:
    """One engine; ``before`` runs in every call, with the call's feeds."""

    def __init__(
        self, record: BuiltEngine, before: Callable[[Mapping[str, Array]], None] = lambda feeds: None
    ) -> None:
        self.record, self.before = record, before
        self.calls: list[int] = []  # the rows of each call
        self.running, self.closed = 0, 0
        self._lock = threading.Lock()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            assert not self.closed, "run after close"
            self.running += 1
        try:
            return self._infer(feeds)
        finally:
            with self._lock:
                self.running -= 1

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = "user_id" if self.record.side == "user" else "item_id"
        self.calls.append(len(feeds[rows]))
        self.before(feeds)
        given = dict(feeds)
        index: Any = given.pop(USER_INDEX, np.zeros(1, np.int64))
        checked = check_feeds(tuple(spec for spec in self.record.inputs if spec.name != USER_INDEX), given)
        if REFUSED_ID in checked[rows]:
            raise UgsepError(f"the {self.record.side} engine refused these inputs")
        if self.record.side == "user":
            assert len(checked[rows]) <= MAX_USERS
            return {"state": states(checked)}
        assert len(checked["state"]) <= MAX_USERS
        assert len(checked[rows]) <= MAX_CANDIDATES
        if len(index) == 1:
            assert len(checked["state"]) == 1
            index = np.zeros(len(checked[rows]), np.int64)
        return {"click": logits(checked, checked["state"][index])}

    def close(self) -> None:
        with self._lock:
            assert not self.running, "closed while it runs"
            self.closed += 1


def exact_ranker(
    cache_bytes: int = 1 << 20, index: tuple[str, ...] | None = (USER_ROWS,), digest: str = ""
) -> tuple[Ranker, Exact, Exact]:
    """Return a ranker over exact engines, and both."""
    user_built, item_built = built(index)
    user, item = Exact(user_built), Exact(item_built)
    return Ranker(user, item, user_built, item_built, cache_bytes, VOCABULARIES, digest), user, item


def users(*numbers: int) -> dict[str, Array]:
    """Return the features of numbered users, a row each."""
    rows = [np.random.default_rng(n).standard_normal(3) for n in numbers]
    return {"user_id": np.array(numbers, np.int64), "profile": np.array(rows, np.float32)}


def items(count: int, seed: int = 0) -> dict[str, Array]:
    """Return random candidates."""
    rng = np.random.default_rng(seed)
    quality = rng.standard_normal((count, 2)).astype(np.float32)
    return {"item_id": rng.integers(0, REFUSED_ID, count), "quality": quality}


def expected(user: Mapping[str, Array], given: Mapping[str, Array], index: Array | None = None) -> Array:
    """Return the logits that a request must get."""
    rows = np.zeros(len(given["item_id"]), np.int64) if index is None else index
    return logits(given, states(user)[rows])
