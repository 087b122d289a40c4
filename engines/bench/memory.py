"""The memory of contenders: whether all fit before any is loaded, and one measured in a separate process."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from engines.bench.contender import Contender
from engines.measure.free_memory import free_bytes
from engines.measure.process_memory import resident_bytes
from graphs.base.errors import UgsepError
from quant.requests.spec import Request

_CALLS = 3
#: Resident bytes of a loaded contender over those of the FP32 weights on disk: the file, the weights as the runtime
#: repacks them, its activations. 14 contenders of a model of 103 M parameters took 23 GB, a runtime each 4 times.
_COPIES = 4
_PROCESS_BYTES = 500_000_000  # this process with PyTorch and all runtimes


def check_memory(contenders: int, full: Path, available: int | None = None) -> None:
    """Refuse to load contenders that together need more memory than this process may take.

    Args:
        contenders: how many are loaded at the same time.
        full: the FP32 graph of the whole model; its data files lie beside it.
        available: bytes, by default what this process may take now.

    Raises:
        UgsepError: with the bytes needed and left, and how many contenders would fit.
    """
    left = free_bytes() if available is None else available
    weights = sum(file.stat().st_size for file in full.parent.glob(f"{full.name}*"))
    needed = contenders * _COPIES * weights + _PROCESS_BYTES
    if needed > left:
        fitting = max(0, (left - _PROCESS_BYTES) // max(1, _COPIES * weights))
        raise UgsepError(
            f"{contenders} ways to serve a model of {weights / 1e9:.2f} GB need about {needed / 1e9:.1f} GB, "
            f"{left / 1e9:.1f} GB are free; about {fitting} fit: name fewer with --baselines, or free memory"
        )


def load_and_score_bytes(contender: Contender, request: Request, threads: int = 1) -> int | None:
    """Return the memory that loading a contender and scoring a request adds to a fresh process.

    That is libraries, weights and activations.

    None if the process is killed.
    """
    # Spawned, not forked: a fork would share our pages, and reuse memory that our allocator holds.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_growth, contender, request, threads).result()
        except BrokenProcessPool:
            return None


def _growth(contender: Contender, request: Request, threads: int) -> int:
    before = resident_bytes()
    with contender.load(threads) as loaded:
        calls = loaded(request)
        for _ in range(_CALLS):
            for call in calls.values():
                call()
        return resident_bytes() - before
