"""Valid requests for any bundle, and what a request says by a plain reading of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import Ranker
from graphs.base.names import USER_INDEX

__all__ = ["DTYPES", "Sent", "random_tensors", "reference_scores"]

Array = NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class Sent:
    """What a request says: its tensors, and the outputs it asks for (none: all)."""

    tensors: Mapping[str, Array]
    outputs: tuple[str, ...]


def random_tensors(
    ranker: Ranker, table_rows: Mapping[str, int], candidates: int, users: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Return features of ``users`` users and of candidates, with ``user_index`` if there are several users."""
    made: dict[str, Array] = {}
    for specs, rows in ((ranker.user_inputs, users), (ranker.item_inputs, candidates)):
        for spec in specs:
            shape = (rows, *(int(size) for size in spec.shape[1:]))
            if np.dtype(spec.dtype).kind == "f":
                made[spec.name] = rng.standard_normal(shape).astype(np.float32)
            else:
                made[spec.name] = rng.integers(0, table_rows.get(spec.name, 2), shape).astype(spec.dtype)
    if users > 1:
        made[USER_INDEX] = rng.integers(0, users, candidates)
    return made


def reference_scores(ranker: Ranker, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Score what a request says without a server.

    Raises:
        UgsepError: the ranker refuses it.
    """
    user = {spec.name: tensors[spec.name] for spec in ranker.user_inputs if spec.name in tensors}
    rest = {name: value for name, value in tensors.items() if name not in user and name != USER_INDEX}
    if USER_INDEX in tensors:
        return ranker.score_users(user, rest, tensors[USER_INDEX])
    return ranker.score(user, rest)
