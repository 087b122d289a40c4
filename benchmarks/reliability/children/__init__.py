"""Real commands in processes that are forked from one which has everything imported, and traps to end them."""

__all__ = ["client", "order", "traps"]
