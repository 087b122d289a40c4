"""What "proven" means: parity, gates, latency, and where scores diverge."""

__all__ = [
    "agreement",
    "bisect",
    "checks",
    "failing_rows",
    "fixtures",
    "latency",
    "prove",
    "reference",
    "routing",
    "scores",
    "validate",
]
