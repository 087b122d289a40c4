"""What a campaign found, in figures small enough to commit."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.reliability.contract import Campaign
from benchmarks.reliability.journal import Try

_MOST_DEFECTS = 50  # kept in full; the counts are of all


@dataclass(frozen=True)
class Summary:
    """The figures of one campaign.

    Args:
        name: of the campaign.
        goal: its promise.
        seed: of its tries.
        tries: how many were made.
        history: how the figures came about, in words.
        targets: counts of ``ok``, ``refused`` and ``defect`` by target.
        kinds: how many tries had each kind, by target.
        measures: least, median, most and total of each measure, by target.
        figures: single numbers by target, for what is not counted by tries.
        defects: index, target, kind and detail of the first defects.
    """

    name: str
    goal: str
    seed: int
    tries: int
    history: str = ""
    targets: dict[str, dict[str, int]] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    measures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    defects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def defect_count(self) -> int:
        """How many tries ended in a defect."""
        return sum(counts.get("defect", 0) for counts in self.targets.values())


def summarize(campaign: Campaign[Any], seed: int, tries: Sequence[Try]) -> Summary:
    """Count the tries of a campaign."""
    outcomes = [one.outcome for one in tries]
    targets = sorted({one.target for one in outcomes})
    return Summary(
        name=campaign.name,
        goal=campaign.goal,
        seed=seed,
        tries=len(tries),
        history=campaign.history,
        targets={t: dict(Counter(o.result for o in outcomes if o.target == t)) for t in targets},
        kinds={t: dict(Counter(o.kind for o in outcomes if o.target == t and o.kind).most_common()) for t in targets},
        measures={t: found for t in targets if (found := _measures([o.measures for o in outcomes if o.target == t]))},
        defects=[
            {"index": one.index, "target": one.outcome.target, "kind": one.outcome.kind, "detail": one.outcome.detail}
            for one in tries
            if one.outcome.result == "defect"
        ][:_MOST_DEFECTS],
    )


def _measures(found: Sequence[Any]) -> dict[str, dict[str, float]]:
    by_name: dict[str, list[float]] = {}
    for measures in found:
        for name, value in measures.items():
            if value is not None:
                by_name.setdefault(name, []).append(value)
    return {
        name: {
            "least": min(values),
            "median": statistics.median(values),
            "most": max(values),
            "total": math.fsum(values),
        }
        for name, values in sorted(by_name.items())
    }
