"""A bundle on disk: manifest, hashes, atomic publishing, loading."""

from engines.bundle.manifest import Engine, Manifest, read_manifest

__all__ = ["Engine", "Manifest", "read_manifest"]
