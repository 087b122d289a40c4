"""The formulas against the modules they count: parameters of the model, GEMM FLOPs of the traced halves."""

from __future__ import annotations

from typing import Any

import pytest

from graphs.features import of_side
from graphs.parameter_counts import Count
from graphs.split import split
from tests.graphs.model_laws import FEATURES, RATIOS, VARIANTS, make_config, make_model, make_rows

USERS = [f.name for f in of_side(FEATURES, "user")]
ITEMS = [f.name for f in of_side(FEATURES, "item")]


@pytest.mark.parametrize("changes", [{}, {"compensation": False}, {"ug_sep": False}], ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters(variant: str, ratio: str, changes: dict[str, Any]) -> None:
    config = make_config(variant, ratio, **changes)
    assert config.counts().parameters == make_model(config).dense_parameters()


@pytest.mark.parametrize("ratio", ["1:2", "3:1"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_of_both_sides(variant: str, ratio: str) -> None:
    config = make_config(variant, ratio)
    halves = split(make_model(config).for_inference(), (make_rows(3, 0),), user=USERS, item=ITEMS)
    counts = config.counts()
    assert halves.user_cost.gemm_flops == counts.user.flops
    assert halves.item_cost.gemm_flops == counts.item.flops


def test_idle_experts_are_part_of_all_flops() -> None:
    total = Count(3, 100, 40) + Count(1, 10) * 2
    assert total == Count(5, 120, 40)
    assert total.active_flops == 80
    assert total.again() == Count(0, 120, 40)
