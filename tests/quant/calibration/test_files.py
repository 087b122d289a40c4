"""Statistics that no inputs can have are refused by their name, in one line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphs.base.errors import UgsepError
from quant.arrays import Doubles
from quant.calibration import files
from quant.calibration.files import load_calibration, save_calibration
from quant.calibration.statistics import (
    Calibration,
    InputStatistics,
    Samples,
    SideStatistics,
    combine,
    merge,
    observe,
)


def changed(matrix: Doubles, row: int, column: int, value: float) -> Doubles:
    matrix = matrix.copy()
    matrix[row, column] = value
    return matrix


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
        (lambda s: replace(s, gram=s.gram + np.triu(np.full((7, 7), 0.01 * s.squares.min()), 1)), "gram contradicts"),
        (lambda s: replace(s, gram=s.gram - np.eye(7) * 0.01 * s.squares.min()), "gram contradicts"),
        (lambda s: replace(s, gram=changed(s.gram, 6, 0, np.nan)), "user/weight: a statistic is NaN or infinite"),
        (lambda s: replace(s, gram=changed(s.gram, 0, 6, -np.inf)), "user/weight: a statistic is NaN or infinite"),
        (lambda s: replace(s, gram=changed(changed(s.gram, 0, 6, 1e308), 6, 0, -1e308)), "gram contradicts squares"),
        (lambda s: replace(s, count=0), "contradict"),  # a count of zero skipped all checks
        (lambda s: replace(s, gram=s.gram[:, :-1]), r"user/weight: gram has shape \[7, 6\], not \[7, 7\]"),
    ],
)
@pytest.mark.parametrize("elements", [1, 21, 1 << 18])  # one row, three rows and the rest, all rows at a time
@pytest.mark.filterwarnings("error")
def test_impossible_statistics_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    elements: int,
    change: Callable[[InputStatistics], InputStatistics],
    line: str,
) -> None:
    monkeypatch.setattr(files, "_BLOCK_ELEMENTS", elements)
    save_calibration(calibration(change), tmp_path)
    with pytest.raises(UgsepError, match=line):
        load_calibration(tmp_path)


@pytest.mark.parametrize("shape", [(8, 5), (2, 7, 5)])
def test_statistics_of_other_inputs_than_the_weight_takes_are_refused(shape: tuple[int, ...]) -> None:
    side = replace(calibration().user, feeds={"w": ("weight",)})
    side.check_shapes({"w": (7, 5)})
    with pytest.raises(UgsepError, match="weight 'w' takes inputs of shape"):
        side.check_shapes({"w": shape})


def test_gram_matrices_of_feature_tokens_are_checked_one_by_one(tmp_path: Path) -> None:
    rows = np.random.default_rng(4).normal(2.0, 1.0, (3, 50, 7)).astype(np.float32)
    found = observe(rows, 3, gram=True)
    assert found.gram is not None
    side = SideStatistics("0" * 64, {"weight@3": found}, {})
    save_calibration(Calibration(side, side), tmp_path)
    np.testing.assert_array_equal(load_calibration(tmp_path).item.tensors["weight@3"].gram, found.gram)
    wrong = replace(found, gram=found.gram[[0, 2, 1]])
    save_calibration(Calibration(side, replace(side, tensors={"weight@3": wrong})), tmp_path)
    with pytest.raises(UgsepError, match="item/weight@3: gram contradicts squares"):
        load_calibration(tmp_path)


def test_a_gram_matrix_is_checked_without_copies_of_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(5).normal(size=(30, 1_900)).astype(np.float32)
    side = SideStatistics("0" * 64, {"weight": observe(rows, 0, gram=True)}, {})
    save_calibration(Calibration(side, replace(side, tensors={})), tmp_path)
    whole = 8 * 1_900**2
    tracemalloc.start()
    try:
        load_calibration(tmp_path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < whole / 2  # a few blocks of 2 MB, of 29 MB


def test_a_header_of_lists_is_one_line(tmp_path: Path) -> None:
    """The library takes the three values of an entry as a list too."""
    _, data = save_calibration(calibration(), tmp_path)
    raw = data.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    header[name] = list(header[name].values())
    text = json.dumps(header).encode()
    data.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(UgsepError, match=r"calibration.safetensors.*; calibrate again"):
        load_calibration(tmp_path)


def one_tensor(key: str, width: int, samples: str) -> Calibration:
    rows = np.random.default_rng(width).normal(size=(11, width)).astype(np.float32)
    side = SideStatistics("0" * 64, {key: observe(rows, 0)}, {"w": (key,)})
    return Calibration(side, side, (Samples(samples, 1, 11),))


@pytest.mark.parametrize(
    ("key", "width", "line"),
    [
        ("other", 7, "the calibrations are of different tensors; run quant calibrate again"),
        ("x", 5, "the calibrations do not fit together: statistics to combine must exist and have one shape"),
    ],
)
def test_parts_of_other_tensors_or_shapes_do_not_merge(key: str, width: int, line: str) -> None:
    """The keys and shapes come from files, which a matching graph hash does not vouch for."""
    with pytest.raises(UgsepError, match=line):
        merge([one_tensor("x", 7, "a"), one_tensor(key, width, "b")])


def test_inputs_of_one_weight_that_differ_in_shape_name_the_weight() -> None:
    wide, narrow = (one_tensor("x", width, "a").user.tensors["x"] for width in (7, 5))
    with pytest.raises(ValueError, match="have one shape"):
        combine([wide, narrow])
    side = SideStatistics("0" * 64, {"x": wide, "y": narrow}, {"w": ("x", "y")})
    with pytest.raises(UgsepError, match=r"weight 'w': statistics to combine .* run quant calibrate again"):
        side.of("w")
