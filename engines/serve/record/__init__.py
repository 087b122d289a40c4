"""Requests kept for replay, calibration and validation, and traces."""

__all__ = ["recorder", "rows", "tracing"]
