"""From a model to a proven bundle."""

__all__: list[str] = []
