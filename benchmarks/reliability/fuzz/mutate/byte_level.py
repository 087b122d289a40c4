"""Mutations of the bytes of any file."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["mutate_bytes"]

_SIZES = (0, 1, 2, 3, 4, 8, 16, 64, 4096)
_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def mutate_bytes(data: bytes, rng: random.Random, tokens: Sequence[bytes] = ()) -> bytes:
    """Return the bytes with one to four changes; ``tokens`` are texts of the format that are inserted too."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice(_SIZES)
        kind = rng.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice(_EDGES)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = rng.randbytes(size)
        elif kind == 4:
            changed[at : at + size] = rng.randbytes(min(size, len(changed) - at))
        elif kind == 5:
            start = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + size]
        elif kind == 6 and tokens:
            changed[at:at] = rng.choice(tokens)
        elif kind == 7 and rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)
