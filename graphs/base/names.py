"""Names that several packages agree on; imports nothing, so that the runtime can read them without torch."""

#: The input that the item graph adds: the row of the user state that each candidate belongs to, int64 [candidates].
USER_INDEX = "user_index"

#: The axis of ``user_index`` in item engines that also take it with a single row for all candidates.
USER_ROWS = "user_rows"
