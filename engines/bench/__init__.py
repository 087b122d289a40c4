"""A bundle measured against other ways to serve the same model."""

__all__: list[str] = []
