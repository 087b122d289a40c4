"""MovieLens-100K: from raw ratings to request files and a trained checkpoint."""

__all__: list[str] = []
