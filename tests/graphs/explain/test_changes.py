"""The changes that would separate user and item, ranked by what each wins."""

import pytest
import torch

from graphs.explain.changes import ranked
from graphs.explain.explain import explain
from graphs.split.split import split
from tests.graphs.small_models import D, Keywords, N
from tests.graphs.split.blocks.sequence_models import COUPLED, Sequence, sequence_example


def test_the_largest_win_comes_first() -> None:
    def work(m: Keywords, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        small = torch.cat([u[:, :2], i[:, :2]], 1).tanh() @ torch.ones(4, 3)
        large = torch.cat([u, i], 1).tanh() @ torch.ones(2 * D, 40)
        return small.sum(1) + large.sum(1)

    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    told = explain(split(Keywords(work), example, user=["u"], item=["i"], hoisting=False), 100)
    first, second = ranked(told)
    assert first.saved_flops > second.saved_flops > 0
    assert first.share == pytest.approx(first.saved_flops / told.full_flops)
    assert first.speedup_limit > second.speedup_limit > told.speedup_limit
    request = told.user_flops + first.saved_flops + 100 * (told.item_flops - first.saved_flops)
    assert first.speedup_limit == pytest.approx(100 * told.full_flops / request)


def test_an_attention_without_a_mask_is_among_them() -> None:
    torch.manual_seed(0)
    model = Sequence(COUPLED["unmasked"], layers=1).eval()
    told = explain(split(model, sequence_example(), user=["history"], item=["item"]))
    (mask,) = (c for c in ranked(told) if "constant mask" in c.change)
    assert mask.saved_flops == told.unmasked[0].movable_flops
