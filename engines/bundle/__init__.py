"""A bundle on disk: manifest, hashes, atomic publishing, loading."""

__all__ = [
    "bundle",
    "digest",
    "document",
    "files",
    "fixture_file",
    "fixtures",
    "limits",
    "load",
    "manifest",
    "provenance",
    "publish",
    "report_file",
    "weight_statuses",
]
