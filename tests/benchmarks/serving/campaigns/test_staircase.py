"""Tests for benchmarks/serving/campaigns/staircase.py."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serving.campaigns.staircase import LEAST_FACTOR, Staircase


@pytest.mark.parametrize("start", [40.0, 140.0, 400.0])
def test_the_staircase_settles_around_the_rate_that_is_held(start: float) -> None:
    stairs = Staircase(start)
    for _ in range(18):
        stairs.advance(1.0, stairs.rate <= 100.0)
    # The last steps are of the least factor, around the threshold; those before are larger, on both sides of it.
    assert stairs.found() == pytest.approx(100.0, rel=0.1)
    assert stairs.rate == pytest.approx(100.0, rel=LEAST_FACTOR**2 - 1)


@pytest.mark.parametrize("pause", range(12))
def test_one_pause_of_the_machine_does_not_shut_out_the_truth(pause: int) -> None:
    stairs = Staircase(80.0)
    for step in range(18):
        stairs.advance(1.0, stairs.rate <= 100.0 and step != pause)
    assert stairs.found() == pytest.approx(100.0, rel=0.15)


def test_the_ratio_of_two_servers_survives_a_machine_that_changes_its_speed() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        fast, slow = Staircase(160.0), Staircase(80.0)
        for _ in range(18):
            speed = rng.choice([0.7, 1.0])  # of the machine, while both take their turn
            fast.advance(1.0, fast.rate <= 200.0 * speed)
            slow.advance(1.0, slow.rate <= 100.0 * speed)
        ratios.append(fast.found() / slow.found())
    assert np.median(ratios) == pytest.approx(2.0, rel=0.02)
