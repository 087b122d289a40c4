"""The splitter: one traced model becomes a user graph and an item graph."""
