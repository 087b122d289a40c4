"""Errors, names, strict configs, progress and feature declarations: what every package stands on."""

from graphs.base.errors import GateFailed, UgsepError, nearest

__all__ = ["GateFailed", "UgsepError", "nearest"]
