"""A bundle on disk: manifest, hashes, atomic publishing, loading."""

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Engine, Manifest, read_manifest

__all__ = ["Bundle", "Engine", "Manifest", "read_manifest"]
