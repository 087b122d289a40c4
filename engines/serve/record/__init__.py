"""Requests kept for replay, calibration and validation."""

__all__: list[str] = []
