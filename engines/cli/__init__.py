"""The command lines: one file per command; nothing outside imports click."""
