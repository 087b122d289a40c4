"""Correctness first: the scores of every contender are compared with the bundle's FP32 graph before it is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engines.backends.contract import Array
from engines.verify.agreement import agreement

#: Minimum SQNR against FP32 in dB. Reordered FP32 sums keep well over 100 dB; a single rounding leaves 53 dB in BF16
#: (8 bits) and 71 dB in FP16 (11 bits). Int8 may be off by 10 %, far more than the gates of a build allow, so that no
#: baseline is excluded for being slightly worse.
FLOORS_DB: Mapping[str, float] = {
    "fp32": 80.0, "fp16": 40.0, "bf16": 30.0, "w8a16": 20.0, "w8a32": 20.0, "w8a8-dynamic": 20.0,
    "w8a8-static": 20.0,
}  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """The worst task's agreement with FP32: SQNR in dB, Kendall tau, and the SQNR floor."""

    sqnr_db: float
    kendall_tau: float
    floor_db: float

    @property
    def holds(self) -> bool:
        """Whether the SQNR reaches the floor; NaN never does."""
        return self.sqnr_db >= self.floor_db


def compare(reference: Mapping[str, Array], actual: Mapping[str, Array], precision: str) -> Quality:
    """Compare one request's logits with FP32; a missing task or a wrong number of rows counts as NaN."""
    floor = FLOORS_DB[precision]
    nan = float("nan")
    found = []
    for task, logits in reference.items():
        got = actual.get(task)
        if got is None or got.shape != logits.shape:
            return Quality(nan, nan, floor)
        found.append(agreement([logits], [np.asarray(got, np.float32)]))
    return Quality(min(a.sqnr_db for a in found), min(a.kendall_tau for a in found), floor)
