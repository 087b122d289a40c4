"""Errors, names, strict configs, progress and feature declarations, shared by all packages."""

__all__ = [
    "config",
    "cost",
    "errors",
    "features",
    "finite",
    "gc_paused",
    "json_text",
    "json_words",
    "limits",
    "names",
    "progress",
    "regular_file",
    "scratch",
    "yaml_text",
]
