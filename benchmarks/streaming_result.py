"""What one streaming run measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.verify.checks import Check

PEAK_BYTES = 3 * 1024**3
OUTPUT_RATIO, READ_RATIO = 1.05, 3.0
LARGE_BYTES = 10**9  # a smaller output is mostly what stays float
HUGE_BYTES = 10**10  # a smaller run mostly starts Python and traces the model, whatever the disk does
#: What quantizing may add to the memory of the traced graph: buffers of the chunks, and the largest weight once.
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Measured:
    """One run: bytes and seconds; ``curve`` is (seconds, resident bytes), ``steps`` when each step began."""

    model: str
    checkpoint_bytes: int
    largest_bytes: int
    int8_bytes: int
    output_bytes: int
    peak_bytes: int
    traced_bytes: int
    read_seconds: float
    stream_seconds: float
    curve: tuple[tuple[float, int], ...]
    steps: Mapping[str, float]

    def checks(self) -> list[Check]:
        """Return the bounds: memory, memory added to the traced graph, size if large, time if huge."""
        found = [
            Check("peak memory, GiB", self.peak_bytes / 2**30, PEAK_BYTES / 2**30),
            Check(
                "memory added while quantizing, MiB",
                (self.peak_bytes - self.traced_bytes) / 2**20,
                (CHUNK_BYTES + self.largest_bytes) / 2**20,
            ),
        ]
        if self.checkpoint_bytes >= LARGE_BYTES:
            found.append(Check("output over int8 bytes", self.output_bytes / self.int8_bytes, OUTPUT_RATIO))
        if self.checkpoint_bytes >= HUGE_BYTES:
            found.append(Check("time over one cold read", self.stream_seconds / self.read_seconds, READ_RATIO))
        return found
