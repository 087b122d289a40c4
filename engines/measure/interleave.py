"""Interleaved timing: every call once per round, in a rotating order, so that machine drift affects all equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from engines.measure.percentiles import Percentiles

Key = TypeVar("Key")

WARM_UP = 2
#: A call shorter than this is made once more, untimed, right before the timed one. A server runs one model and
#: finds its weights in cache; here the other contenders have just evicted them.
PRIMED_BELOW_SECONDS = 0.02
#: Idle worker threads spin for a while after a call; after the pause, those of the previous contender are asleep.
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
    primed = [key for key in order if seconds[key] < PRIMED_BELOW_SECONDS]
    samples = samples_in_turn({key: calls[key] for key in order}, rounds, primed=primed, pause_s=PAUSE_SECONDS)
    return {key: Percentiles.of(s) for key, s in samples.items()}


def samples_in_turn(
    calls: Mapping[Key, Callable[[], object]],
    least: int,
    most: int = 0,
    seconds: float = 0.0,
    *,
    primed: Collection[Key] = (),
    pause_s: float = 0.0,
) -> dict[Key, list[float]]:
    """Return the milliseconds of every call in every round, without warm-up.

    Args:
        calls: what to time; each round starts with another one.
        least: minimum number of rounds.
        most: maximum number of rounds; those beyond ``least`` start within ``seconds`` of the first.
        seconds: see ``most``.
        primed: calls made once more, untimed, right before the timed one.
        pause_s: seconds of sleep before every call.
    """
    order = list(calls)
    samples: dict[Key, list[float]] = {key: [] for key in order}
    until = time.perf_counter() + seconds
    turn = 0
    while order and (turn < least or (turn < most and time.perf_counter() < until)):
        first = turn % len(order)
        for key in (*order[first:], *order[:first]):
            if pause_s:
                time.sleep(pause_s)
            if key in primed:
                calls[key]()
            samples[key].append(_seconds(calls[key]) * 1e3)
        turn += 1
    return samples


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
