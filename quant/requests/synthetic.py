"""Random requests for trials, never for calibration without an explicit flag."""

from __future__ import annotations

SYNTHETIC_REQUESTS = 24


SYNTHETIC_CANDIDATES = 32
