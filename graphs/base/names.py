"""Names shared by several packages; imports none of them, so that the runtime can use it without torch."""

from typing import Literal

#: The side of a feature.
Side = Literal["user", "item"]
SIDES: tuple[Side, Side] = ("user", "item")

#: The graphs of a split model: the whole model and its two subgraphs.
GraphSide = Literal["full", "user", "item"]

#: The item graph's extra input: the row of the user state that belongs to each candidate, int64 [candidates].
USER_INDEX = "user_index"

#: The axis of ``user_index`` in item engines that also accept a single row for all candidates.
USER_ROWS = "user_rows"
