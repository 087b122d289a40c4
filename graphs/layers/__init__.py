"""The layers of token-mixing models, with and without UG-Sep."""

__all__ = ["block_mixing", "moe", "parameter_counts", "tokenize", "tokenwise", "ugsep"]
