"""The formulas against the modules they describe (their FLOPs are compared with traced graphs elsewhere)."""

from __future__ import annotations

from typing import Any

import pytest

from graphs.layers.parameter_counts import Count
from tests.graphs.model_laws import RATIOS, VARIANTS, make_config, make_model


@pytest.mark.parametrize("changes", [{}, {"compensation": False}, {"ug_sep": False}], ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters(variant: str, ratio: str, changes: dict[str, Any]) -> None:
    config = make_config(variant, ratio, **changes)
    assert config.counts().parameters == make_model(config).dense_parameters()


def test_idle_experts_are_part_of_all_flops() -> None:
    total = Count(3, 100, 40) + Count(1, 10) * 2
    assert total == Count(5, 120, 40)
    assert total.active_flops == 80
    assert total.again() == Count(0, 120, 40)
