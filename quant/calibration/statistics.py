"""Input statistics of every weight's MatMul, collected and merged exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from export.io import file_sha256
from graphs.base.errors import UgsepError
from quant.arrays import Doubles, Floats


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the tensor that feeds a weight.

    ``count`` rows were seen (per feature token of a 3-D weight). ``squares`` is sum x_k^2, ``sums`` is sum x_k,
    ``low`` and ``high`` the range, float64 [K] for a 2-D weight and [T, K] for a 3-D one. ``gram`` is sum x x^T,
    float64 [K, K] or [T, K, K], None unless collected.
    """

    count: int
    squares: Doubles
    sums: Doubles
    low: Doubles
    high: Doubles
    gram: Doubles | None = None

    @property
    def moments(self) -> Doubles:
        """Second moments E[x_k^2]."""
        return self.squares / max(self.count, 1)

    @property
    def mean(self) -> Doubles:
        """Means E[x_k]."""
        return self.sums / max(self.count, 1)

    def centered(self) -> InputStatistics:
        """Return the statistics of x - E[x]: (co)variances instead of second moments."""
        mean, count = self.mean, max(self.count, 1)
        squares = np.maximum(self.squares - count * mean**2, 0.0)
        gram = self.gram
        if gram is not None:
            gram = gram - count * mean[..., :, None] * mean[..., None, :]
        return InputStatistics(self.count, squares, np.zeros_like(mean), self.low - mean, self.high - mean, gram)


def observe(x: Floats, tokens: int, gram: bool = False) -> InputStatistics:
    """Return the statistics of one batch of MatMul inputs.

    ``tokens`` is 0 for a 2-D weight: x is [..., K]. Otherwise x is [..., T, M, K] (or [M, K] or [..., 1, M, K], the
    same for every feature token) and the statistics are per feature token.

    Raises:
        UgsepError: x holds NaN or Inf.
    """
    inputs = x.shape[-1]
    if tokens and x.ndim > 3:  # rows first, as products over pairs of fields have it
        x = x.reshape(-1, *x.shape[-3:]).swapaxes(0, 1)  # [T, N, M, K]
        x = x.reshape(x.shape[0], -1, inputs)
    rows = x.reshape(-1, inputs) if not tokens else np.broadcast_to(x, (tokens, *x.shape[-2:]))
    squares = np.einsum("...mk,...mk->...k", rows, rows, dtype=np.float64)
    if not np.isfinite(squares).all():
        raise UgsepError("the FP32 graph computes NaN or Inf on these requests; check the weights and the data")
    matrix = None
    if gram:
        wide = rows.astype(np.float64)
        matrix = wide.swapaxes(-1, -2) @ wide
    empty = rows.shape[-2] == 0
    low = np.full(squares.shape, np.inf) if empty else rows.min(axis=-2).astype(np.float64)
    high = np.full(squares.shape, -np.inf) if empty else rows.max(axis=-2).astype(np.float64)
    return InputStatistics(rows.shape[-2], squares, rows.sum(axis=-2, dtype=np.float64), low, high, matrix)


def combine(parts: Iterable[InputStatistics]) -> InputStatistics:
    """Return the statistics of all parts together; Gram matrices only if all parts have one.

    Raises:
        ValueError: no parts, or parts of different shapes.
    """
    parts = tuple(parts)
    if not parts or len({p.squares.shape for p in parts}) != 1:
        raise ValueError("statistics to combine must exist and have one shape")
    grams = [p.gram for p in parts if p.gram is not None]
    return InputStatistics(
        sum(p.count for p in parts),
        np.sum([p.squares for p in parts], axis=0),
        np.sum([p.sums for p in parts], axis=0),
        np.min([p.low for p in parts], axis=0),
        np.max([p.high for p in parts], axis=0),
        sum(grams[1:], grams[0]) if len(grams) == len(parts) else None,
    )


@dataclass(frozen=True)
class SideStatistics:
    """Statistics of one graph: those of each MatMul input tensor, and which of them feed each weight.

    ``tensors`` is keyed ``name`` for 2-D weights and ``name@T`` for 3-D ones of T feature tokens.
    """

    graph_sha256: str
    tensors: Mapping[str, InputStatistics]
    feeds: Mapping[str, tuple[str, ...]]

    def of(self, weight: str) -> InputStatistics:
        """Return the combined statistics of the inputs of a weight.

        Raises:
            UgsepError: the weight was not calibrated.
        """
        keys = self.feeds.get(weight, ())
        if not keys or not self.tensors.keys() >= set(keys):
            raise UgsepError(f"weight '{weight}' was not calibrated; run quant calibrate on this graph")
        try:
            return combine(self.tensors[key] for key in keys)
        except ValueError as error:
            raise UgsepError(f"weight '{weight}': {error}; run quant calibrate again") from error

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the statistics of each weight are [K] for a shape [K, N] and [T, K] for [T, K, N].

        Raises:
            UgsepError: they are of inputs of another shape, or the weight was not calibrated.
        """
        for weight, shape in shapes.items():
            found = self.of(weight).squares.shape
            if found != shape[:-1]:
                raise UgsepError(
                    f"weight '{weight}' takes inputs of shape {list(shape[:-1])}, its calibration is of "
                    f"{list(found)}; run quant calibrate again"
                )


@dataclass(frozen=True)
class Samples:
    """The requests that were calibrated on: their hash and number, and whether they were random."""

    sha256: str
    requests: int
    rows: int
    synthetic: bool = False


@dataclass(frozen=True)
class Calibration:
    """Statistics of the user and the item graph over the same requests, possibly merged from several parts."""

    user: SideStatistics
    item: SideStatistics
    samples: tuple[Samples, ...] = field(default_factory=tuple)

    @property
    def rows(self) -> int:
        """Candidate rows seen."""
        return sum(s.rows for s in self.samples)

    @property
    def synthetic(self) -> bool:
        """Whether any part used random data."""
        return any(s.synthetic for s in self.samples)

    @property
    def samples_sha256(self) -> str:
        """The hash of the requests; the hashes of several parts are joined by ``+``."""
        return "+".join(s.sha256 for s in self.samples)

    def side(self, onnx_path: Path) -> SideStatistics:
        """Return the statistics of a graph, looked up by the hash of its content.

        Raises:
            UgsepError: the statistics are of other graphs.
        """
        digest = file_sha256(onnx_path)
        for side in (self.user, self.item):
            if side.graph_sha256 == digest:
                return side
        raise UgsepError(
            f"the calibration is of another graph than '{onnx_path}' ({digest[:12]}, calibrated: "
            f"{self.user.graph_sha256[:12]}, {self.item.graph_sha256[:12]}); run quant calibrate again"
        )


def merge(parts: Iterable[Calibration]) -> Calibration:
    """Join calibrations of the same graphs over different requests.

    Raises:
        UgsepError: no parts, other graphs, or a part given twice.
    """
    parts = tuple(parts)
    if not parts:
        raise UgsepError("nothing to merge; give at least one calibration")
    if len({(p.user.graph_sha256, p.item.graph_sha256) for p in parts}) != 1:
        raise UgsepError("the calibrations are of different graphs; merge only parts of one export")
    samples = tuple(s for p in parts for s in p.samples)
    if len({s.sha256 for s in samples}) != len(samples):
        raise UgsepError("the same requests are in two of the calibrations; give each part once")
    return Calibration(_merge_side([p.user for p in parts]), _merge_side([p.item for p in parts]), samples)


def _merge_side(sides: list[SideStatistics]) -> SideStatistics:
    if any(side.tensors.keys() != sides[0].tensors.keys() for side in sides):
        raise UgsepError("the calibrations are of different tensors; run quant calibrate again")
    try:
        tensors = {key: combine(s.tensors[key] for s in sides) for key in sides[0].tensors}
    except ValueError as error:
        raise UgsepError(f"the calibrations do not fit together: {error}; run quant calibrate again") from error
    return replace(sides[0], tensors=tensors)


def without_grams(calibration: Calibration) -> Calibration:
    """Return the statistics without Gram matrices, which only gptq reads and which are most of the bytes."""
    user, item = (
        replace(side, tensors={key: replace(found, gram=None) for key, found in side.tensors.items()})
        for side in (calibration.user, calibration.item)
    )
    return replace(calibration, user=user, item=item)
