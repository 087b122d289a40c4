"""The commands of `quant`."""
