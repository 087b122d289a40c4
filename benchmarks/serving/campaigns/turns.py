"""Turns on a machine whose speed varies: one in which it changed says nothing, and is taken again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Turn", "medians", "take_turns"]


@dataclass(frozen=True)
class Turn:
    """The saturation of a server right before and after a load, in answers/s, and the figures of the load."""

    before: float
    after: float
    figures: Mapping[str, float]

    @property
    def change(self) -> float:
        """By what share the larger of both saturations exceeds the smaller."""
        least, most = sorted((self.before, self.after))
        return most / least - 1.0 if least > 0 else float("inf")


def take_turns(
    measures: Mapping[str, Callable[[int], Turn]], wanted: int, most: int, most_change: float
) -> dict[str, list[Turn]]:
    """Measure every server once a round, until each has as many steady turns as wanted.

    Args:
        measures: by the name of a server, what takes a turn; it gets the number of the round.
        wanted: steady turns of each.
        most: rounds, whatever was found.
        most_change: of the saturation within a steady turn.
    """
    found: dict[str, list[Turn]] = {name: [] for name in measures}
    for number in range(most):
        for name, measure in measures.items():
            found[name].append(measure(number))
        if all(sum(turn.change <= most_change for turn in turns) >= wanted for turns in found.values()):
            break
    return found


def medians(turns: Sequence[Turn]) -> dict[str, float]:
    """Return the median of each figure; no figures if there is no turn."""
    keys = turns[0].figures if turns else ()
    return {key: float(np.median([turn.figures[key] for turn in turns])) for key in keys}
