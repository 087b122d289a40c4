"""The command lines: one file per command; nothing outside imports click."""

__all__: list[str] = []
