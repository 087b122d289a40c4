"""From a model to a verified bundle."""

__all__: list[str] = []
