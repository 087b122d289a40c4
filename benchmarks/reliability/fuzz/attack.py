"""One mutation and the commands that meet it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.fuzz.inputs import Inputs
from benchmarks.reliability.fuzz.worker import Ended

__all__ = ["Attack", "Run", "Target"]


@dataclass(frozen=True)
class Run:
    """A program, its arguments, and the path that it must not leave behind if it refuses.

    ``resumed_by`` is for commands that keep what they had done before they met the fault, in a hidden folder in
    ``writes``, as documented: the same command on sound input, which must succeed and leave no such folder.
    """

    program: str
    arguments: tuple[str, ...]
    writes: Path | None = None
    resumed_by: tuple[str, ...] | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The command line as a person would type it."""
        return (self.program, *self.arguments)


@dataclass(frozen=True)
class Attack:
    """Runs to make in order, up to the first defect.

    ``wrong`` looks at how all of them ended and returns the kind of a defect that only the results show, or ''.
    ``flips`` is the number of mutations that the runs stand for.
    """

    runs: tuple[Run, ...]
    wrong: Callable[[list[Ended]], str] = lambda _: ""
    flips: int = 0


#: Mutates in a folder of its own; the number counts the attacks on this target, for those that go through places.
Target = Callable[[Inputs, Path, int, random.Random], Attack]
