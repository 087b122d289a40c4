from __future__ import annotations

from functools import partial

from engines.measure.interleave import interleaved


def test_interleaving_visits_everybody_in_every_round() -> None:
    order: list[str] = []
    found = interleaved({name: partial(order.append, name) for name in ("a", "b", "c")}, rounds=4)
    assert set(found) == {"a", "b", "c"}
    # Two warm-ups, then each round once untimed and once timed.
    assert {name: order.count(name) for name in "abc"} == dict.fromkeys("abc", 2 + 2 * 4)
    starts = [order[6 + 6 * turn] for turn in range(4)]
    assert starts == ["a", "b", "c", "a"]
