"""The measurements of one streaming run, and their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.verify.checks import Check

PEAK_BYTES = 3 * 1024**3
OUTPUT_RATIO, READ_RATIO = 1.05, 3.0
LARGE_BYTES = 10**9  # below this, tensors that stay float dominate the output
HUGE_BYTES = 10**10  # below this, starting Python and tracing dominate the time, not the disk
#: Memory that quantizing may add to the traced graph, besides one copy of the largest weight: the chunk buffers.
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class StreamingRun:
    """One run: bytes and seconds; ``curve`` is (seconds, resident bytes), ``steps`` the start of each step."""

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
        """Return the checks: peak memory, memory added by quantizing, size if large, time if huge."""
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
