"""The ``quant`` commands."""

__all__ = ["main"]
