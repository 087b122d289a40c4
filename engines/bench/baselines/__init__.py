"""Other ways to serve the whole model, one file per runtime."""

__all__: list[str] = []
