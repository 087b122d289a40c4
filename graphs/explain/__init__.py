"""What a split saves and where user and item information meet, as text and as a picture."""

__all__ = ["explain", "picture", "reuse", "text"]
