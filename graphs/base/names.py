"""Names that several packages agree on; imports nothing of ours, so that the runtime reads them without torch."""

from typing import Literal

#: Whose feature it is.
Side = Literal["user", "item"]
SIDES: tuple[Side, Side] = ("user", "item")

#: The graphs of a split model: the whole one, and its two subgraphs.
GraphSide = Literal["full", "user", "item"]

#: The input that the item graph adds: the row of the user state that each candidate belongs to, int64 [candidates].
USER_INDEX = "user_index"

#: The axis of ``user_index`` in item engines that also take it with a single row for all candidates.
USER_ROWS = "user_rows"
