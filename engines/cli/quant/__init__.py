"""The commands of `quant`."""

__all__: list[str] = []
