"""What "proven" means: parity, gates, latency, and where scores diverge."""

__all__: list[str] = []
