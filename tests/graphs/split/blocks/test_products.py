"""Attention over [history | item]: what a mask lets the user graph compute, against the whole model."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graphs.split.blocks.sequence_models import (
    APART,
    COUPLED,
    FINITE,
    HEADS,
    HISTORY,
    IDS,
    ITEMS,
    SHARED,
    TOTAL,
    WIDTH,
    Sequence,
    made,
    sequence_example,
)
from tests.suites import slow_but

#: A mask of each kind in every run; the others take seconds each.
OF_EACH_KIND = ("padding_chosen", "padded_mask", "written", "finite", "half_lowest", "pointwise", "is_causal")


@pytest.mark.parametrize("name", slow_but(OF_EACH_KIND, APART))
def test_history_is_computed_once(name: str) -> None:
    torch.manual_seed(0)
    found = made(Sequence(APART[name]), sequence_example(), ["history"]).split
    # Per candidate, at most the item's share of the products of positions with weights and with each other.
    assert found.item_cost.gemm_flops <= found.full_cost.gemm_flops * ITEMS / TOTAL + 2 * WIDTH  # and the head
    assert found.unmasked == ()
    # Keys and values of the history, per layer, in double precision; masks and biases are of the item side.
    kept = 2 * 2 * HISTORY * WIDTH * 8
    assert kept <= found.state_bytes <= kept + HISTORY * 8


@pytest.mark.parametrize("name", slow_but({"grouped"}, SHARED))
def test_heads_that_share_keys(name: str) -> None:
    torch.manual_seed(0)
    found = made(Sequence(SHARED[name]), sequence_example(), ["history"]).split
    assert found.item_cost.gemm_flops <= found.full_cost.gemm_flops * ITEMS / TOTAL + 2 * WIDTH  # and the head
    assert found.unmasked == ()
    # The keys and values are kept once, not for every head that reads them.
    heads = 1 if name == "one_head" else HEADS // 2
    kept = 2 * 2 * HISTORY * WIDTH * heads // HEADS * 8
    assert kept <= found.state_bytes <= kept + HISTORY * 8


@pytest.mark.parametrize("name", slow_but({"unmasked"}, COUPLED))
def test_no_mask_no_separation(name: str) -> None:
    """Without a mask that hides the items, the user's keys and values of the first layer are all there is."""
    torch.manual_seed(0)
    found = made(Sequence(COUPLED[name]), sequence_example(), ["history"]).split
    assert found.reusable_share < 0.5
    assert not any("layers.0.down" in h.where for h in found.hoisted)
    # Only the first attention: what comes after it has no user positions any more.
    (unmasked,) = found.unmasked
    assert "layers.0" in unmasked.where
    assert unmasked.user_share == HISTORY / TOTAL
    assert unmasked.finite == (name in FINITE)
    masked = made(Sequence(APART["is_causal"]), sequence_example(), ["history"]).split
    # An estimate: what the mask wins also has residual sums and rows of the last layer that nothing reads.
    won = found.item_cost.flops - masked.item_cost.flops
    assert 0.8 * won <= unmasked.movable_flops <= found.item_cost.flops


class ReadWhole(nn.Module):
    """The heads are joined by a view, which the strides of attention allow and those of a product do not."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.joint = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.joint(self.ids(torch.cat([history, item], 1)))
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in x.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return mixed.cumsum(1)[:, -1].sum(-1)


def test_attention_that_is_read_whole() -> None:
    torch.manual_seed(0)
    assert made(ReadWhole(), sequence_example(), ["history"]).split.hoisted
