"""Sums and latest events per key, over events strictly before each query's time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Past:
    """Events sorted by (key, time); build it with :func:`index_events`.

    ``code`` = key * span + time, int64 [E], ascending; ``order`` int64 [E] points back to the events.
    """

    code: Ints
    order: Ints
    start: int
    span: int


def index_events(key: Ints, time: Ints) -> Past:
    """Index events by key and time; int64 [E] each, keys non-negative."""
    start, span = int(time.min()), int(time.max() - time.min()) + 2
    code = key * span + (time - start)
    order = np.argsort(code, kind="stable").astype(np.int64)
    return Past(code[order], order, start, span)


def window(past: Past, key: Ints, time: Ints) -> tuple[Ints, Ints]:
    """Return [first, last) positions, int64 [Q] each, of the events with the same key and an earlier time."""
    clipped = np.clip(time - past.start, 0, past.span - 1)
    first = np.searchsorted(past.code, key * past.span, side="left")
    last = np.searchsorted(past.code, key * past.span + clipped, side="left")
    return first.astype(np.int64), last.astype(np.int64)


def sums_before(past: Past, values: Floats, key: Ints, time: Ints) -> Floats:
    """Sum the events' ``values`` [E, C] over each query's past; float64 [Q, C].

    Sums of integer values are exact, because the running sums are exact too.
    """
    first, last = window(past, key, time)
    running = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values[past.order], axis=0, out=running[1:])
    return np.asarray(running[last] - running[first])


def latest_before(past: Past, values: Ints, width: int, key: Ints, time: Ints) -> Ints:
    """Return the last ``width`` values of each query's past, newest first, padded with 0; int64 [Q, width]."""
    first, last = window(past, key, time)
    at = last[:, None] - 1 - np.arange(width)
    return np.where(at >= first[:, None], values[past.order[np.maximum(at, 0)]], 0)
