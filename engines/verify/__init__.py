"""What "proven" means: parity, gates, latency, and where scores part."""

__all__: list[str] = []
