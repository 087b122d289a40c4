"""The commands that operate on finished bundles."""

__all__ = ["bench", "bisect", "inspect", "routing", "schemes", "validate", "verify"]
