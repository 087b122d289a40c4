"""The commands that operate on finished bundles."""

__all__: list[str] = []
