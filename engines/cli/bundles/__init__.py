"""The commands that take finished bundles."""

__all__: list[str] = []
