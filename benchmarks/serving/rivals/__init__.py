"""Other servers in front of the same engines, each in an environment of its own."""

__all__ = ["setup", "spec", "triton"]
