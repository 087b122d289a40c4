"""What a campaign is, and what one try of it can end in."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

Workspace = TypeVar("Workspace")


@dataclass(frozen=True)
class Outcome:
    """How one try ended.

    Args:
        target: what was tried, a row of the report's table.
        result: ``ok``, ``refused`` (bad input answered as documented) or ``defect``.
        kind: a few words by which outcomes are counted, for example the damage done or the sort of defect.
        detail: one line for a person who looks into this try.
        measures: numbers by name; the report gives their median and extremes. The unit ends the name (``_ms``).
    """

    target: str
    result: Literal["ok", "refused", "defect"]
    kind: str = ""
    detail: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)


def _nothing(_: Any) -> None:
    """Leave the workspace as it is."""


@dataclass(frozen=True)
class Campaign(Generic[Workspace]):
    """Many seeded tries against one promise.

    Args:
        name: as in ``python -m benchmarks.reliability run NAME``.
        goal: the promise, one sentence for the report.
        prepare: makes what all tries share (bundles, reference scores, worker processes) in an empty folder.
        attempt: one try, from the workspace, the index of the try and a random generator of that index alone, so that
            a try repeats without those before it. An exception that escapes is a defect.
        short_tries: how many tries CI makes.
        long_tries: how many the long form makes unless ``--tries`` or ``--minutes`` stop it earlier.
        close: ends what ``prepare`` started, also after Ctrl-C.
        history: how the committed figures came about and what the tries found first, a paragraph for the report.
    """

    name: str
    goal: str
    prepare: Callable[[Path], Workspace]
    attempt: Callable[[Workspace, int, random.Random], Outcome]
    short_tries: int
    long_tries: int
    close: Callable[[Workspace], None] = _nothing
    history: str = ""
