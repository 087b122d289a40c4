"""What "proven" means: parity, gates, latency, and where scores diverge."""

__all__ = [
    "agreement",
    "bisect",
    "checks",
    "failing_rows",
    "latency",
    "prove",
    "reference",
    "routing",
    "scores",
    "validate",
]
