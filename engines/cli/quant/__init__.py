"""The ``quant`` commands."""

__all__: list[str] = []
