"""The commands that operate on finished bundles."""

__all__ = ["bench", "bisect", "inspect", "replay", "routing", "schemes", "validate", "verify"]
