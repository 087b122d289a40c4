"""Resident memory of one contender, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from engines.bench.contender import Contender
from quant.requests.readers import Request

_STATM = Path("/proc/self/statm")
_CALLS = 3


def resident_bytes(contender: Contender, request: Request, threads: int = 1) -> int | None:
    """Return what loading a contender and scoring a request adds to a bare process: libraries, weights, activations.

    None if the system is not Linux or the process is killed.
    """
    if not _STATM.exists():
        return None
    # A fresh interpreter: a forked one would share our pages, and our allocator would hide what is freed.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_growth, contender, request, threads).result()
        except BrokenProcessPool:
            return None


def _growth(contender: Contender, request: Request, threads: int) -> int:
    before = _resident()
    calls = contender.load(threads)(request)
    for _ in range(_CALLS):
        for call in calls.values():
            call()
    return _resident() - before


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
