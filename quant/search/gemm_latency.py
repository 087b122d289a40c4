"""Where latencies of single GEMMs come from: whoever builds engines offers a gemm_timer, found by its entry point.

``quant`` chooses precisions by measured latency but does not know how an engine is built. The package that does
declares the entry point ``gemm_timer`` in the group ``ugsep.gemm_latency``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from graphs.base.errors import UgsepError
from quant.policy import Precision

#: (weight shape, rows) -> milliseconds per call in each precision; inf where the backend does not run it.
MeasureGemm = Callable[[tuple[int, ...], int], Mapping[Precision, float]]

GROUP, NAME = "ugsep.gemm_latency", "gemm_timer"


def gemm_timer(backend: str, threads: int) -> MeasureGemm:
    """Return the function that times one GEMM on a backend with so many threads.

    Raises:
        UgsepError: nothing installed offers a gemm_timer, the backend is unknown, or it cannot run here.
    """
    found = entry_points(group=GROUP, name=NAME)
    if not found:
        raise UgsepError("no installed package can time GEMMs; install ugsep again, with 'pip install -e .'")
    offered: Callable[[str, int], MeasureGemm] = next(iter(found)).load()
    return offered(backend, threads)
