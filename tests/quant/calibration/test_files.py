"""Statistics that no inputs can have are refused by their name, in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphs.base.errors import UgsepError
from quant.calibration.files import load_calibration, save_calibration
from quant.calibration.statistics import Calibration, InputStatistics, SideStatistics, observe


def calibration(change: Callable[[InputStatistics], InputStatistics] = lambda found: found) -> Calibration:
    rows = np.random.default_rng(3).normal(2.0, 1.0, (50, 7)).astype(np.float32)
    found = observe(rows, 0, gram=True)
    side = SideStatistics("0" * 64, {"weight": found}, {})
    return Calibration(replace(side, tensors={"weight": change(found)}), side)


def test_what_was_observed_reads_back(tmp_path: Path) -> None:
    save_calibration(calibration(), tmp_path)
    read = load_calibration(tmp_path).user.tensors["weight"]
    np.testing.assert_array_equal(read.sums, calibration().user.tensors["weight"].sums)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: replace(s, count=-1), "user/weight: count -1 is negative"),
        (lambda s: replace(s, squares=-s.squares), "user/weight: squares, sums, low and high contradict"),
        (lambda s: replace(s, low=s.high, high=s.low), "contradict"),
        (lambda s: replace(s, sums=s.sums * 1e200), "contradict"),  # its square overflowed in a scheme
        (lambda s: replace(s, high=s.high * np.nan), "user/weight: a statistic is NaN or infinite"),
        (lambda s: replace(s, sums=s.sums[:-1]), "differ in shape"),
        (lambda s: replace(s, gram=2 * s.gram), "user/weight: gram contradicts squares"),
        (lambda s: replace(s, count=0), "contradict"),  # a count of zero skipped all checks
        (lambda s: replace(s, gram=s.gram[:, :-1]), r"user/weight: gram has shape \[7, 6\], not \[7, 7\]"),
    ],
)
def test_impossible_statistics_are_one_line(
    tmp_path: Path, change: Callable[[InputStatistics], InputStatistics], line: str
) -> None:
    save_calibration(calibration(change), tmp_path)
    with pytest.raises(UgsepError, match=line):
        load_calibration(tmp_path)


@pytest.mark.parametrize("shape", [(8, 5), (2, 7, 5)])
def test_statistics_of_other_inputs_than_the_weight_takes_are_refused(shape: tuple[int, ...]) -> None:
    side = replace(calibration().user, feeds={"w": ("weight",)})
    side.check_shapes({"w": (7, 5)})
    with pytest.raises(UgsepError, match="weight 'w' takes inputs of shape"):
        side.check_shapes({"w": shape})
