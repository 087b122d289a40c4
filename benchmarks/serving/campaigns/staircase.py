"""The highest rate that a server holds, on a machine whose speed varies while it is searched for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["LEAST_FACTOR", "Staircase"]

LEAST_FACTOR = 1.04


@dataclass
class Staircase:
    """Goes up after a rate that was held, down after one that was not, by smaller steps after each turn.

    Bisection believes every answer: one pause of a shared machine, or its fastest minute, shuts out the truth for
    good. A staircase comes back; it settles around the rate that is held as often as not.
    """

    rate: float  # requests per second to try next
    factor: float = 1.25  # of a step
    steps: list[tuple[float, float, bool]] = field(default_factory=list)  # rate, p99 in ms, whether it was held

    def advance(self, p99: float, held: bool) -> None:
        """Note what became of the present rate and choose the next."""
        if self.steps and held != self.steps[-1][2]:
            self.factor = max(LEAST_FACTOR, self.factor**0.5)
        self.steps.append((round(self.rate, 1), round(p99, 3), held))
        self.rate = self.rate * self.factor if held else self.rate / self.factor

    def found(self) -> float:
        """Return the geometric mean of the rates after the first third of the steps, which only leads there."""
        rates = [rate for rate, _, _ in self.steps]
        return float(np.exp(np.mean(np.log(rates[len(rates) // 3 :]))))
