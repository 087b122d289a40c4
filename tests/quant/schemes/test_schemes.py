"""A scheme is a config dataclass and one registered function: nothing else has to know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from graphs.base.errors import UgsepError
from quant.schemes import numerics, schemes
from quant.weights import quantize_side


@pytest.fixture
def clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a scheme for one test."""
    monkeypatch.setattr(schemes, "CONFIGS", dict(schemes.CONFIGS))

    @dataclass(frozen=True)
    class Clipping(schemes.SchemeConfig):
        needs_calibration: ClassVar[bool] = False
        needs_grams: ClassVar[bool] = True
        ratio: float = 0.5

    @schemes.register("clipping", Clipping)
    def _(config: Clipping, weight: Any, _: Any, block: int) -> schemes.Quantized:
        scale = numerics.representable(numerics.absmax_scale(weight, block) * np.float32(config.ratio))
        return schemes.Quantized(numerics.quantize(weight, scale), scale)


@pytest.mark.usefixtures("clipping")
def test_a_registered_scheme_quantizes_a_graph(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    found = quantize_side(graphs[1], tmp_path / "out", scheme=schemes.scheme_from("clipping", {"ratio": 0.25}))
    assert {r.scheme for r in found.rows if r.bits == 8} == {"clipping"}
    plain = quantize_side(graphs[1], tmp_path / "plain", scheme=schemes.Absmax())
    assert all(a.sqnr_db < b.sqnr_db for a, b in zip(found.rows, plain.rows, strict=True) if b.bits == 8)
    assert schemes.needs_grams(("absmax", "clipping"))
    assert not schemes.needs_grams(("absmax", "mse", "awq"))


@pytest.mark.usefixtures("clipping")
def test_a_mistyped_scheme_or_option_names_the_nearest() -> None:
    with pytest.raises(UgsepError, match="unknown scheme 'clippin', did you mean 'clipping'"):
        schemes.scheme_from("clippin")
    with pytest.raises(UgsepError, match="has no option 'rato', did you mean 'ratio'"):
        schemes.scheme_from("clipping", {"rato": 1})
