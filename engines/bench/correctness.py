"""Scores before times: every contender is compared with the bundle's FP32 graph before it is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engines.backends.contract import Array
from engines.verify.agreement import agreement

#: SQNR in dB that scores must reach against FP32. FP32 summed in another order keeps well over 100 dB; one rounding
#: leaves 53 dB with BF16 (8 bits) and 71 dB with FP16 (11 bits); int8 may have 10 % of error, far more than the gates
#: of a build allow, so that no baseline is left out for being a little worse.
FLOORS_DB: Mapping[str, float] = {
    "fp32": 80.0, "fp16": 40.0, "bf16": 30.0, "w8a16": 20.0, "w8a32": 20.0, "w8a8-dynamic": 20.0,
}  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """Worst task's agreement with FP32: SQNR in dB, Kendall tau, and the floor the SQNR was held to."""

    sqnr_db: float
    kendall_tau: float
    floor_db: float

    @property
    def holds(self) -> bool:
        """Whether the SQNR reaches the floor; NaN never does."""
        return self.sqnr_db >= self.floor_db


def compare(reference: Mapping[str, Array], actual: Mapping[str, Array], precision: str) -> Quality:
    """Compare one request's logits with FP32's; a missing task or another number of rows counts as NaN."""
    floor = FLOORS_DB[precision]
    nan = float("nan")
    found = []
    for task, logits in reference.items():
        got = actual.get(task)
        if got is None or got.shape != logits.shape:
            return Quality(nan, nan, floor)
        found.append(agreement([logits], [np.asarray(got, np.float32)]))
    return Quality(min(a.sqnr_db for a in found), min(a.kendall_tau for a in found), floor)
