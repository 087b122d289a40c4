"""The peak FP32 GEMM rate and copy bandwidth of this machine, measured."""

from __future__ import annotations

from dataclasses import dataclass

from engines.backends.onnxruntime.session import import_onnxruntime, plain_settings, start_session
from engines.measure.copy_rate import best_rate, measure_copy_gb_s
from engines.measure.gemm_graph import gemm_graph
from graphs.base.errors import UgsepError


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


def measure_peak(threads: int = 1, size: int = 1024, rounds: int = 12) -> MachinePeak:
    """Measure with square ``size`` GEMMs in PyTorch and ONNX Runtime, and a copy; the best round wins.

    Raises:
        UgsepError: fewer than one thread or round, or onnxruntime is missing.
    """
    if threads < 1 or rounds < 1:
        raise UgsepError(f"{threads} threads and {rounds} rounds: give at least one of each")
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, size, generator=generator) for _ in range(2))
    out = torch.empty(size, size)
    model = gemm_graph([("x", w.numpy())])  # the runtime packs a constant weight ahead
    session = start_session(import_onnxruntime(), model.SerializeToString(), plain_settings(threads))
    feeds = {"x": x.numpy()}
    flops = 2.0 * size**3
    rates = {
        "PyTorch": best_rate(lambda: torch.mm(x, w, out=out), flops, rounds),
        "ONNX Runtime": best_rate(lambda: session.run(None, feeds), flops, rounds),
    }
    best = max(rates, key=lambda name: rates[name])
    return MachinePeak(threads, rates[best], best, measure_copy_gb_s(threads, rounds))
