"""The gate on what a runtime did with int8 weights: a precision that promises int8 GEMMs has to have them."""

from __future__ import annotations

from collections.abc import Iterable

from engines.backends.built_engine import BuiltEngine, WeightStatus
from engines.verify.checks import Check

#: Precisions that promise int8 weights in the GEMMs as they run; ``w8a32`` promises exact FP32 GEMMs instead.
INT8_AT_RUN = frozenset({"w8a16", "w8a8-dynamic", "w8a8-static"})
BROKEN: frozenset[WeightStatus] = frozenset({"folded-to-float", "missing"})


def int8_checks(engines: Iterable[BuiltEngine]) -> list[Check]:
    """Return one check per int8 engine: no weight may have become float; the check names those that did."""
    checks = []
    for engine in engines:
        if engine.precision not in INT8_AT_RUN:
            continue
        lost = [f"{w.name} ({w.status})" for w in engine.weights if w.status in BROKEN]
        listed = f": {', '.join(lost)}" if lost else ""
        checks.append(Check(f"{engine.side} int8 weights that {engine.backend} lost{listed}", len(lost), 0))
    return checks
