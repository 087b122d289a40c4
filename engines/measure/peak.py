"""What this machine can do at most: FP32 GEMM rate and copy bandwidth, measured, not looked up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphs.base.errors import UgsepError

_COPY_BYTES = 128 << 20  # four times a large last-level cache, so that the copy runs from memory


@dataclass(frozen=True)
class MachinePeak:
    """Best rates seen with ``threads`` threads.

    ``gemm_gflops``: FP32 GEMM in GFLOP/s (multiply-adds count two) and the library that reached it.
    ``copy_gb_s``: bytes read plus bytes written of a large copy, in GB/s.
    """

    threads: int
    gemm_gflops: float
    gemm_by: str
    copy_gb_s: float

    def attainable(self, flops_per_byte: float) -> float:
        """Return the roofline in GFLOP/s at an arithmetic intensity."""
        return min(self.gemm_gflops, flops_per_byte * self.copy_gb_s)


def measure_peak(threads: int = 1, size: int = 1024, rounds: int = 12, copy_bytes: int = _COPY_BYTES) -> MachinePeak:
    """Measure with square ``size`` GEMMs in PyTorch and ONNX Runtime, and a copy; the best round counts.

    Raises:
        UgsepError: fewer than one thread or round.
    """
    if threads < 1 or rounds < 1:
        raise UgsepError(f"{threads} threads and {rounds} rounds: give at least one of each")
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, size, generator=generator) for _ in range(2))
    out = torch.empty(size, size)
    rates = {"PyTorch": _rate(lambda: torch.mm(x, w, out=out), 2.0 * size**3, rounds)}
    ort_gemm = _onnxruntime_gemm(x.numpy(), w.numpy(), threads)
    if ort_gemm is not None:
        rates["ONNX Runtime"] = _rate(ort_gemm, 2.0 * size**3, rounds)
    best = max(rates, key=lambda name: rates[name])
    source = torch.ones(copy_bytes // 4)
    target = torch.zeros_like(source)
    copied = _rate(lambda: target.copy_(source), 2.0 * copy_bytes, rounds)
    return MachinePeak(threads, rates[best], best, copied)


def _rate(call: Callable[[], object], work: float, rounds: int) -> float:
    """Return work per nanosecond of the fastest round."""
    call()
    fastest = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - started)
    return work / fastest / 1e9


def _onnxruntime_gemm(x: np.ndarray, w: np.ndarray, threads: int) -> Callable[[], object] | None:
    """Return one MatMul by a constant, which the runtime packs ahead; None where it is not installed."""
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], w.shape[1]])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})
