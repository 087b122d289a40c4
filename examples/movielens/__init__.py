"""MovieLens-100K: from raw ratings to request files, a trained checkpoint and a table of model quality."""

__all__ = ["folders"]
