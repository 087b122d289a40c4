"""The splitter: from one traced model to a user graph and an item graph."""

__all__ = ["fresh_rows", "hoist", "proof", "split"]
