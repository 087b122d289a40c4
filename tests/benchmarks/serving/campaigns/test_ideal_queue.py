"""The ideal queue: by formula, by hand, and by a queue that is simulated event by event."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serving.campaigns.ideal_queue import ideal_queue, replayed, service_times
from benchmarks.serving.load.arrivals import poisson
from benchmarks.serving.load.pool import Pool
from benchmarks.serving.load.tally import Tally


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_service_time_waits_as_the_formula_says(load: float) -> None:
    """Pollaczek and Khinchine: with Poisson arrivals and one time s, the mean wait is load / (2 (1 - load)) s."""
    seconds = ideal_queue(poisson(load / 0.002, 400_000 * 0.002 / load), np.array([0.002]))
    assert seconds.min() == pytest.approx(0.002)
    # The standard error of the mean of 400,000 waits, which are alike for some tens of requests, is 1 % at 70 %.
    assert np.mean(seconds) - 0.002 == pytest.approx(0.002 * load / (2 * (1 - load)), rel=0.05)


def test_it_is_the_queue_that_serves_one_after_another() -> None:
    rng = np.random.default_rng(3)
    arrivals, services = np.sort(rng.uniform(0.0, 1.0, 1013)), rng.exponential(0.0007, 211)
    expected, free = [], 0.0
    for number, arrival in enumerate(arrivals):
        free = max(free, arrival) + services[number % len(services)]
        expected.append(free - arrival)
    # Both sum 1013 numbers below 1 in different order: less than 1013 * 2^-53 apart.
    np.testing.assert_allclose(ideal_queue(arrivals, services), expected, atol=2e-13, rtol=0)


def test_a_pause_is_felt_by_those_behind_it_in_every_pairing() -> None:
    services = np.full(500, 0.001)
    services[123] = 0.2
    arrivals = poisson(500.0, 4.0, seed=1)
    times = replayed(arrivals, services).reshape(-1, len(arrivals))
    assert len(times) > 1
    assert (times.max(axis=1) >= 0.2).all()
    assert not np.array_equal(times[0], times[1])
    # The backlog of a pause of 0.2 s at a load of one half is gone after 0.4 s, in which 200 requests come.
    assert ((times > 0.05).sum(axis=1) >= 100).all()


def test_service_times_are_the_gaps_between_answers_of_each_run() -> None:
    pool = Pool((), 0.0)
    first, second = Tally(pool), Tally(pool)
    for code, done in ((200, 5.0), (200, 5.003), (429, 5.0035), (200, 5.01)):
        first.add(code, 4.0, 4.0, done)
    for done in (9.0, 9.25):
        second.add(200, 8.0, 8.0, done)
    np.testing.assert_allclose(service_times([first, second]), [0.003, 0.007, 0.25], atol=1e-12)
