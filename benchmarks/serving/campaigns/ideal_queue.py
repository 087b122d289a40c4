"""What a queue costs that has no cost of its own: one request at a time, in the order in which they come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.load.tally import Tally

__all__ = ["ideal_queue", "replayed", "service_times"]

#: Pairings of the same arrivals with the same service times; each begins elsewhere in the service times.
_PAIRINGS = 16


def ideal_queue(arrivals: NDArray[np.float64], services: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how long each request would take, from its arrival to its end.

    With Poisson arrivals and one service time, this is the queue M/D/1.

    Args:
        arrivals: seconds, ascending [n].
        services: seconds that the server takes for a request [m]; the i-th request takes the (i mod m)-th.

    Returns:
        seconds [n].
    """
    taken = np.resize(services, len(arrivals))
    # Lindley's recursion in closed form: the wait is how far the work that has come is above its lowest point so far.
    work = np.cumsum(taken[:-1] - np.diff(arrivals))
    waits = np.concatenate([[0.0], work - np.minimum.accumulate(np.minimum(work, 0.0))])
    return np.asarray(waits + taken)


def replayed(arrivals: NDArray[np.float64], services: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Return the times of ``ideal_queue`` for several pairings of arrivals and service times, one after another.

    The service times stay in their order, so that a slow second of the machine stays one.
    """
    starts = np.random.default_rng(seed).integers(0, len(services), _PAIRINGS)
    return np.concatenate([ideal_queue(arrivals, np.roll(services, -int(start))) for start in starts])


def service_times(saturated: Sequence[Tally]) -> NDArray[np.float64]:
    """Return the seconds between successive answers of a server that never waits: what each took of its time.

    Two answers that come together count as one that took their whole time and one that took none.
    """
    ends = [
        np.sort([done for done, code in zip(tally.done, tally.codes, strict=True) if code == 200])
        for tally in saturated
    ]
    return np.concatenate([np.diff(each) for each in ends])
