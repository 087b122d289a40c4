"""Compare an exported FP32 graph with the PyTorch graph it was written from, on ordinary and on extreme inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from engines.backends.contract import Array, Runner
from engines.verify.exported.extreme_inputs import exact_outputs, extreme_columns
from engines.verify.exported.reference import reference
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.names import USER_INDEX, GraphSide
from graphs.split.split import Subgraph

CHECKED_SIZES = ((1, 1), (2, 1), (257, 3))  # candidates, users
EXTREME_ROWS = 64
#: FP32 sums of a few thousand terms in another order, relative to the largest value.
ROUNDING = 1e-5
Feeds = Mapping[GraphSide, Mapping[str, Tensor]]


def check_export(side: GraphSide, subgraph: Subgraph, runner: Runner, feeds: Callable[[int, int], Feeds]) -> None:
    """Run one exported FP32 graph against PyTorch on fresh rows, and on extreme values of each input.

    Args:
        side: which graph, for the message.
        subgraph: the PyTorch graph it was exported from.
        runner: the engine built from the file.
        feeds: returns fresh inputs of the three graphs for (candidates, users).

    Raises:
        GateFailed: an output differs by more than FP32 rounding allows, or has a NaN where PyTorch has none.
        UgsepError: the model gives no finite value for any row.
    """
    for candidates, users in CHECKED_SIZES:
        given = dict(feeds(candidates, users)[side])
        expected = {n: v.numpy() for n, v in subgraph(given).items()}
        for output, value in expected.items():
            if len(value) > 2 and value.size and not np.isfinite(value).any():
                raise UgsepError(f"the model itself gives no finite '{output}' for any of {len(value)} random rows")
        got = runner.infer(_arrays(given))
        for output, value in expected.items():
            finite = value[np.isfinite(value)]
            scale = max(1.0, float(np.abs(finite.astype(np.float64)).max()) if finite.size else 1.0)
            allowed = np.full(len(value), ROUNDING * scale)
            _compare(f"onnx/{side}.onnx '{output}' at {candidates} rows", got[output], value, allowed)
    rows = dict(feeds(EXTREME_ROWS, EXTREME_ROWS)[side])
    for name, column, what in extreme_columns(subgraph, rows, skip=(USER_INDEX,)):
        _check_extreme(f"onnx/{side}.onnx", subgraph, runner, {**rows, name: column}, f"'{name}' {what}")


def _check_extreme(file: str, subgraph: Subgraph, runner: Runner, given: dict[str, Tensor], what: str) -> None:
    """Compare the rows that PyTorch computes to a finite value; others say nothing about the file."""
    expected = {n: v.numpy() for n, v in reference(subgraph, given).items()}
    got = runner.infer(_arrays(given))
    exact: dict[str, Array] = {}
    for output, value in expected.items():
        known = np.isfinite(value).reshape(len(value), -1).all(1)
        if not known.any():
            continue
        size = np.abs(value[known].astype(np.float64)).reshape(int(known.sum()), -1).max(1, initial=1.0)
        allowed = ROUNDING * size
        label = f"{file} '{output}' with {what}"
        try:
            _compare(label, got[output][known], value[known], allowed)
        except GateFailed:
            # Large values lose digits in any FP32 runtime: a row may be off by what PyTorch's own FP32 loses, of
            # which one row shows more than another. A lookup of a wrong row loses nothing, and stays a fault.
            exact = exact or exact_outputs(subgraph, given)
            lost = np.abs(value.astype(np.float64) - exact.get(output, value))[known].reshape(len(size), -1).max(1)
            share = float(np.nan_to_num(lost / size, nan=np.inf).max())
            _compare(label, got[output][known], value[known], allowed + 8 * share * size)


def _compare(label: str, got: Array, expected: Array, allowed: Array) -> None:
    """Compare two outputs [N, ...]; ``allowed`` [N] bounds the difference of floats by row; integers are exact."""
    if got.shape != expected.shape:
        raise GateFailed(f"{label}: shape {got.shape}, {expected.shape} in PyTorch")
    if not expected.size:
        return
    rows = len(expected)
    if expected.dtype.kind != "f":
        wrong = (got != expected).reshape(rows, -1).any(1)
        if wrong.any():
            row = int(wrong.argmax())
            raise GateFailed(f"{label}: {got[row]} in row {row}, {expected[row]} in PyTorch")
        return
    a, b = got.astype(np.float64).reshape(rows, -1), expected.astype(np.float64).reshape(rows, -1)
    lost = np.isnan(a) != np.isnan(b)
    if lost.any():
        row, column = np.argwhere(lost)[0]
        raise GateFailed(f"{label}: {a[row, column]:.6g} in row {row}, {b[row, column]:.6g} in PyTorch")
    with np.errstate(invalid="ignore"):  # inf - inf, which is no difference
        difference = np.where((a == b) | np.isnan(a), 0.0, np.abs(a - b)).max(1)
    row = int(np.argmax(difference - allowed))
    if not difference[row] <= allowed[row]:
        raise GateFailed(f"{label}: |difference| {difference[row]:.3g} > {allowed[row]:.3g} in row {row}")


def _arrays(given: Mapping[str, Tensor]) -> dict[str, Array]:
    return {k: v.numpy() for k, v in given.items()}
