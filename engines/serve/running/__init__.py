"""One running server: what its parts share, how they are put together, and its status."""

__all__ = ["assembly", "context", "status"]
