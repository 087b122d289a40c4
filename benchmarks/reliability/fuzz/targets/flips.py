"""Every byte of a bundle changed once: each change must be found."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.reliability.fuzz.attack import Attack, Run
from benchmarks.reliability.fuzz.inputs import Inputs, copy_bundle, replace

__all__ = ["BLOCK", "flips"]

BLOCK = 512  # bytes of a file that one try goes through


def flips(inputs: Inputs, folder: Path, number: int, rng: random.Random) -> Attack:
    """Change every byte of a block of the bundle, one after another, and let ``ugsep verify`` find each change.

    Blocks are gone through in order, and again from the start after the last one; the new value is random.
    """
    blocks = [
        (path.relative_to(inputs.bundle), start)
        for path in sorted(inputs.bundle.rglob("*"))
        if path.is_file()
        for start in range(0, path.stat().st_size, BLOCK)
    ]
    name, start = blocks[number % len(blocks)]
    bundle = copy_bundle(inputs, folder)
    sound = (bundle / name).read_bytes()
    replace(bundle / name, sound)
    count = min(BLOCK, len(sound) - start)
    seed = str(rng.randrange(1 << 30))
    return Attack((Run("flips", (str(bundle), str(name), str(start), str(count), seed)),), flips=count)
