"""Commands killed at any moment: what was there before stays valid, and the next run ends as if nothing had been."""

__all__ = ["campaign", "trees"]
