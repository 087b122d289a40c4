"""A bundle on disk: manifest, hashes, atomic publishing, loading."""
