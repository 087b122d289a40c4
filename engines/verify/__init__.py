"""What "proven" means: parity, gates, latency, and where scores part."""
