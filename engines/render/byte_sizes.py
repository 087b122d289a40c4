"""Byte counts as text: ``1.5 MiB``, ``500M``."""

from __future__ import annotations

import re

from graphs.base.errors import UgsepError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_LENGTH = 40  # characters; a float holds 308 digits


def readable_bytes(count: float) -> str:
    """Return a byte count with a binary unit: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable: the loop returns at GiB")


def parse_size(text: str) -> int:
    """Return a byte count like ``500M`` or ``1.5G`` (powers of 1024) as a number.

    Raises:
        UgsepError: the text is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or len(text) > _MAX_LENGTH:
        raise UgsepError(f"'{text:.60}' is not a valid size; give bytes, or a number with K, M, G or T like 500M")
    return int(float(match[1]) * _UNITS[match[2].upper()])
