"""The command lines, one file per command; only this folder imports click."""

__all__ = ["aborted", "command_entry", "commands", "entry", "group", "main", "telemetry"]
