"""Every model split: the subgraphs give the whole model's scores and have the FLOPs of the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphs.base.features import of_side
from graphs.split.split import Split, split, split_traced
from graphs.trace.trace import trace
from tests.graphs.model_laws import FEATURES, RATIOS, VARIANTS, make_config, make_model, make_rows

USERS = [f.name for f in of_side(FEATURES, "user")]
ITEMS = [f.name for f in of_side(FEATURES, "item")]


def check_subgraphs(variant: str, ratio: str, **changes: Any) -> Split:
    config = make_config(variant, ratio, **changes)
    model = make_model(config)
    traced = trace(model.for_inference(), (make_rows(3, 0),))
    plain, split_model = (split_traced(traced, USERS, ITEMS, hoisting) for hoisting in (False, True))
    for users, candidates in ((1, 1), (1, 2), (3, 17)):
        one, rows = make_rows(users, 1), make_rows(candidates, 2)
        index = torch.arange(candidates) % users
        whole = {f.name: one[f.name][index] if f.side == "user" else rows[f.name] for f in FEATURES}
        state = split_model.user({name: one[name] for name in split_model.user.inputs})
        scores = split_model.item({**rows, **state, "user_index": index})
        with torch.no_grad():
            expected = model(whole)
        assert list(scores) == list(expected)
        for task, logits in expected.items():
            torch.testing.assert_close(scores[task], logits, atol=1e-5, rtol=1e-6)
    counts = config.counts()
    assert plain.user_cost.gemm_flops == counts.user.flops
    assert plain.item_cost.gemm_flops == counts.item.flops
    assert split_model.item_cost.gemm_flops <= counts.item.flops
    return split_model


@pytest.mark.parametrize(("variant", "ratio"), [(v, list(RATIOS)[i % 5]) for i, v in enumerate(VARIANTS)])
def test_halves_equal_the_whole(variant: str, ratio: str) -> None:
    split_model = check_subgraphs(variant, ratio)
    n, m = RATIOS[ratio]
    # Most of the user tokens' work runs once; cross terms and heads run per candidate.
    assert split_model.reusable_share > 0.5 * n / (n + m)


@pytest.mark.slow
@pytest.mark.parametrize("compensation", [True, False], ids=["compensated", "plain"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_equal_the_whole_everywhere(variant: str, ratio: str, compensation: bool) -> None:
    check_subgraphs(variant, ratio, compensation=compensation, layers=1)


def test_unmasked_models_reuse_no_layer() -> None:
    config = make_config("rankmixer", "3:1", ug_sep=False)
    split_model = split(make_model(config), (make_rows(3, 0),), user=USERS, item=ITEMS)
    tokens = config.counts().user.flops  # only the tokenizer of the user tokens is left to reuse
    assert split_model.user_cost.gemm_flops == tokens
    assert split_model.reusable_share < 0.2
