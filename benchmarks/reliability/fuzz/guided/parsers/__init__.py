"""The parsers, one file for those that share sound inputs: each factory returns one as the fuzzer calls it."""

__all__ = ["bundles", "checkpoints", "graphs", "protocol", "recipes", "requests"]
