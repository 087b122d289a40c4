"""Errors, names, strict configs, progress and feature declarations, shared by all packages."""

from graphs.base.errors import GateFailed, UgsepError, nearest

__all__ = ["GateFailed", "UgsepError", "nearest"]
