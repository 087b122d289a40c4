"""Random requests for trials, never for calibration without an explicit flag."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quant.arrays import Array
from quant.graph.gemms import load_graph, weights_of
from quant.requests.spec import InputSpec, Request, RequestSpec

SYNTHETIC_REQUESTS = 24
SYNTHETIC_CANDIDATES = 32


def table_rows(user_onnx: Path, item_onnx: Path) -> int:
    """Return the rows of the smallest embedding table: random ids below it are valid everywhere."""
    rows = [w.shape[0] for p in (user_onnx, item_onnx) for w in weights_of(load_graph(p)) if w.kind == "table"]
    return min(rows, default=2)


def synthetic_requests(
    spec: RequestSpec, requests: int, candidates: int, vocabulary: int, seed: int
) -> Iterator[Request]:
    """Yield random requests: floats normal, integers uniform in [0, vocabulary), masks of every pattern."""
    generator = np.random.default_rng(seed)

    def column(wanted: InputSpec, rows: int) -> Array:
        shape = (rows, *wanted.row_shape)
        dtype = np.dtype(wanted.dtype)
        if dtype.kind == "f":
            return generator.standard_normal(shape).astype(dtype)
        if dtype.kind == "b":
            values = generator.integers(0, 2, shape).astype(dtype)
            kind = (np.arange(rows) + generator.integers(4)) % 4  # four rows in a row hold all patterns
            values[kind == 0], values[kind == 2] = False, True
            return values
        return generator.integers(0, vocabulary, shape).astype(dtype)

    for identity in range(requests):
        yield Request(
            identity,
            {s.name: column(s, 1) for s in spec.user},
            {s.name: column(s, candidates) for s in spec.item},
        )
