"""The splitter: from one traced model to a user graph and an item graph."""

__all__ = ["column_provenance", "fresh_rows", "hoist", "proof", "prune_columns", "rewriter", "split"]
