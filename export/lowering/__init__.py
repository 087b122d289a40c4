"""Graph rewrites that fit an exported graph to one target runtime."""
