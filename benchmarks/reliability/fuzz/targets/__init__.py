"""What is mutated and which commands then read it."""

__all__ = ["table"]
