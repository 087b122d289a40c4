"""One request through any of the ranker's calls, and the scores that it must get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines import Ranker
from engines.backends.contract import Array
from engines.backends.onnxruntime.session import import_onnxruntime
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError

__all__ = ["CALLS", "Reference", "Request", "call"]


@dataclass(frozen=True)
class Request:
    """The features of U users, those of N candidates, and each candidate's user; values may be anything in a try."""

    users: Mapping[str, Any]
    items: Mapping[str, Any]
    index: Any

    def copy(self) -> Request:
        """Return plain copies of all arrays, which nobody else has."""
        users, items = ({n: np.array(v) for n, v in side.items()} for side in (self.users, self.items))
        return Request(users, items, np.array(self.index))


@dataclass(frozen=True)
class Reference:
    """The FP32 graph of the whole model, and a ranker of the same engines that caches nothing."""

    full: Any
    ranker: Ranker

    @classmethod
    def of(cls, bundle: Path) -> Reference:
        """Load both."""
        full = import_onnxruntime().InferenceSession(bundle / "onnx" / "full.onnx")
        return cls(full, Ranker.from_bundle(bundle, cache_bytes=0))

    def fp32(self, request: Request) -> dict[str, Array]:
        """Return the logits of the whole FP32 model, each candidate beside its user."""
        users = {name: value[request.index] for name, value in request.users.items()}
        names = [output.name for output in self.full.get_outputs()]
        return dict(zip(names, self.full.run(names, {**users, **request.items}), strict=True))

    def engines(self, request: Request) -> dict[str, Array]:
        """Return the logits of the engines, a call for every user's candidates."""
        found: dict[str, Array] = {}
        for user in np.unique(request.index):
            rows = request.index == user
            one = {name: value[user : user + 1] for name, value in request.users.items()}
            scored = self.ranker.score(one, {name: value[rows] for name, value in request.items.items()})
            for task, logits in scored.items():
                found.setdefault(task, np.zeros(len(rows), np.float32))[rows] = logits
        return found


def call(ranker: Ranker, how: str, request: Request) -> dict[str, Array]:
    """Score a request by one of ``CALLS``; those with 'one' take requests of one user.

    Raises:
        UgsepError: as the call does.
    """
    if how == "score_users":
        return ranker.score_users(request.users, request.items, request.index)
    if how == "score_requests":
        own = ScoreRequest(request.users, request.items, request.index)
        scored = ranker.score_requests([own])[0]
    elif how == "score_requests, one user":
        scored = ranker.score_requests([ScoreRequest(request.users, request.items)])[0]
    elif how == "warm, then score_requests":
        ranker.warm(request.users)
        scored = ranker.score_requests([ScoreRequest(request.users, request.items, request.index)])[0]
    else:
        if how == "user_state, then score of one":
            ranker.user_state(request.users)
        return ranker.score(request.users, request.items)
    if isinstance(scored, UgsepError):
        raise scored
    return scored.scores


#: Ways to score, and whether they take several users.
CALLS: Mapping[str, bool] = {
    "score of one": False,
    "user_state, then score of one": False,
    "score_requests, one user": False,
    "score_users": True,
    "score_requests": True,
    "warm, then score_requests": True,
}
