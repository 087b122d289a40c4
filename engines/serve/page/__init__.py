"""The page at /: what the server does, and requests to try."""

__all__ = ["routes"]
