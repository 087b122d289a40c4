"""Interleaved timing: every call once per round, in a rotating order, so that drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import numpy as np

from engines.measure.percentiles import Percentiles

Key = TypeVar("Key")

WARM_UP = 2
#: A call shorter than this is made once more, untimed, right before the timed one. A server runs one model and
#: finds its weights in cache; here the other contenders have just thrown them out.
PRIMED_BELOW_SECONDS = 0.02
#: Idle worker threads spin for a while after a call; the pause lets the last contender's give the cores back.
PAUSE_SECONDS = 0.005


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    budget_s: float = float("inf"),
    optional: Collection[Key] = (),
) -> dict[Key, Percentiles]:
    """Return the percentiles in milliseconds of every call over ``rounds`` rounds, after warm-up.

    An ``optional`` call whose rounds would take longer than ``budget_s`` seconds has no entry.
    """
    order = list(calls)
    seconds = dict.fromkeys(order, 0.0)
    for _ in range(WARM_UP):
        for key in order:
            seconds[key] = _seconds(calls[key])
    order = [key for key in order if key not in optional or seconds[key] * rounds <= budget_s]
    samples: dict[Key, list[float]] = {key: [] for key in order}
    for turn in range(rounds):
        first = turn % len(order) if order else 0
        for key in (*order[first:], *order[:first]):
            time.sleep(PAUSE_SECONDS)
            if seconds[key] < PRIMED_BELOW_SECONDS:
                calls[key]()
            samples[key].append(_seconds(calls[key]) * 1e3)
    return {key: Percentiles(*map(float, np.percentile(s, (50, 90, 99)))) for key, s in samples.items()}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
