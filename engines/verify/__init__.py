"""What "proven" means: parity, gates, latency, and where scores diverge."""

__all__ = [
    "agreement",
    "batching",
    "bisect",
    "checks",
    "failing_rows",
    "fixtures",
    "isolated",
    "latency",
    "prove",
    "reference",
    "replay",
    "routing",
    "scores",
    "validate",
]
