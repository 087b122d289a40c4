"""The ceiling of an item graph in ONNX Runtime: its FP32 GEMMs alone, with weights of the same shapes and number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.backends.onnxruntime.session import import_onnxruntime, plain_settings, start_session
from engines.measure.gemm_graph import gemm_graph
from export.lowering import read_inferred

_MESSAGE_BYTES = 3 << 29  # protobuf rejects 2 GiB; the margin is for the graph around the weights


@dataclass(frozen=True)
class Gemm:
    """One GEMM with a constant weight [k, n] and ``rows`` rows per candidate."""

    rows: int
    k: int
    n: int

    def flops(self, candidates: int) -> float:
        """Return the FLOPs, two per multiply-add."""
        return 2.0 * self.rows * candidates * self.k * self.n


def constant_gemms(path: Path) -> list[Gemm]:
    """Return the GEMMs with FP32 weights of a lowered graph, in order; weights are [K, N] or [T, K, N] (T tokens)."""
    found: list[Gemm] = []
    for node in read_inferred(path).graph:
        if node.op_type != "MatMul":
            continue
        x, w = node.inputs
        if x is None or w is None or not w.is_initializer() or w.shape is None or x.shape is None:
            continue
        shape = [size for size in w.shape if isinstance(size, int)]
        if len(shape) == 2:
            inner = [size for size in list(x.shape)[:-1] if isinstance(size, int)]
            found.append(Gemm(int(np.prod(inner, dtype=np.int64)), shape[0], shape[1]))
        elif len(shape) == 3:
            found += [Gemm(1, shape[1], shape[2])] * shape[0]
    return found


def gemms_alone(gemms: list[Gemm], threads: int) -> Callable[[int], Callable[[], object]] | None:
    """Return a function from a number of candidates to a call that runs all GEMMs, each with its own weight.

    None without GEMMs, or if the weights do not fit into one protobuf message.
    """
    if not 0 < sum(4 * gemm.k * gemm.n for gemm in gemms) < _MESSAGE_BYTES:
        return None
    generator = np.random.default_rng(0)
    weights = [(_name(gemm), generator.standard_normal((gemm.k, gemm.n), np.float32)) for gemm in gemms]
    model = gemm_graph(weights).SerializeToString()
    session = start_session(import_onnxruntime(), model, plain_settings(threads))
    kinds = {_name(gemm): gemm for gemm in gemms}

    def bind(candidates: int) -> Callable[[], object]:
        feeds = {x: generator.standard_normal((g.rows * candidates, g.k), np.float32) for x, g in kinds.items()}
        return lambda: session.run(None, feeds)

    return bind


def _name(gemm: Gemm) -> str:
    return f"x{gemm.rows}_{gemm.k}"
