"""The rate at which this machine copies memory, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

_COPY_BYTES = 128 << 20  # four times a large last-level cache, so that the copy runs from memory


def measure_copy_gb_s(threads: int = 1, rounds: int = 12, copy_bytes: int = _COPY_BYTES) -> float:
    """Return bytes read plus bytes written of a large copy by PyTorch in GB/s; the best round wins."""
    import torch

    torch.set_num_threads(threads)
    source = torch.ones(copy_bytes // 4)
    target = torch.zeros_like(source)
    return best_rate(lambda: target.copy_(source), 2.0 * copy_bytes, rounds)


def best_rate(call: Callable[[], object], work: float, rounds: int) -> float:
    """Return the work per nanosecond of the fastest of ``rounds`` calls, after one to warm up."""
    call()
    fastest = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - started)
    return work / fastest / 1e9
