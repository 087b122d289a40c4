"""Graph rewrites that fit an exported graph to one target runtime."""

__all__: list[str] = []
