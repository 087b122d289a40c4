"""How many rows the embedding table behind each id input has: an id beyond it must be refused, not looked up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.backends.contract import Array
from graphs.base.errors import UgsepError


def check_ids(side: str, given: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
    """Refuse an id that is no row of its table.

    Raises:
        UgsepError: names the feature, the id, and the largest one there is.
    """
    for name, rows in sizes.items():
        ids = given.get(name)
        if ids is None or ids.dtype != np.int64 or ids.size == 0:
            continue
        # Seen as unsigned a negative id is a huge one, so that one pass finds both; a single id needs no pass.
        sound = 0 <= ids.item() < rows if ids.size == 1 else ids.view(np.uint64).max() < rows
        if not sound:
            wrong = int(ids[(ids < 0) | (ids >= rows)].flat[0])
            raise UgsepError(
                f"{side} feature '{name}' has id {wrong}; its table has {rows} rows, so ids go from 0 to {rows - 1}"
            )
