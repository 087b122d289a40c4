"""The page at /: what the server does, and a request to try."""

__all__: list[str] = []
