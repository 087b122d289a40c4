"""Resident memory of one contender, measured in a separate process."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from engines.bench.contender import Contender
from engines.measure.process_memory import resident_bytes
from quant.requests.spec import Request

_CALLS = 3


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
