"""The type of the function that times one GEMM; the caller of the search, which builds engines, passes it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quant.policy import Precision

__all__ = ["MeasureGemm"]

#: (weight shape, rows) -> milliseconds per call in each precision; inf if the backend does not run it.
MeasureGemm = Callable[[tuple[int, ...], int], Mapping[Precision, float]]
