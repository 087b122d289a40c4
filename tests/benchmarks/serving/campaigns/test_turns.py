"""Turns are taken until enough of them are steady, and those that are not have no part in the medians."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.serving.campaigns.turns import Turn, medians, take_turns


def served(rates: list[tuple[float, float]], order: list[str], name: str) -> Callable[[int], Turn]:
    """Return what measures a machine of these speeds before and after each turn; the p99 is ten times the last."""

    def measure(number: int) -> Turn:
        order.append(f"{name} {number}")
        return Turn(*rates[number], {"p99_ms": 10.0 * rates[number][1]})

    return measure


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(300.0, 345.0, 0.15), (345.0, 300.0, 0.15), (7.0, 7.0, 0.0), (9.0, 0.0, float("inf"))],
)
def test_a_change_is_the_same_up_and_down(before: float, after: float, change: float) -> None:
    assert Turn(before, after, {}).change == pytest.approx(change)


def test_a_turn_in_which_the_machine_changed_is_taken_again() -> None:
    order: list[str] = []
    slow = served([(300, 200), (200, 210), (205, 190), (190, 400)], order, "slow")
    fast = served([(400, 399), (401, 380), (385, 390), (390, 395)], order, "fast")
    found = take_turns({"slow": slow, "fast": fast}, wanted=2, most=4, most_change=0.15)
    assert order == ["slow 0", "fast 0", "slow 1", "fast 1", "slow 2", "fast 2"]  # in turn, and no more than needed
    steady = [turn for turn in found["slow"] if turn.change <= 0.15]
    assert [turn.before for turn in steady] == [200, 205]
    assert medians(steady) == {"p99_ms": 2000.0}  # of 2100 and 1900, without the 2000 of the first


def test_a_machine_that_is_never_steady_ends_the_campaign_too() -> None:
    order: list[str] = []
    found = take_turns({"any": served([(100, 150), (150, 100), (90, 180)], order, "any")}, 2, 3, 0.15)
    assert len(found["any"]) == 3
    assert medians([turn for turn in found["any"] if turn.change <= 0.15]) == {}
