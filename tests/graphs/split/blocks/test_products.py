"""Attention over [history | item]: what a mask lets the user graph compute, against the whole model."""

import pytest
import torch

from tests.graphs.split.blocks.sequence_models import (
    APART,
    COUPLED,
    HISTORY,
    ITEMS,
    TOTAL,
    WIDTH,
    Sequence,
    made,
    sequence_example,
)


@pytest.mark.parametrize("name", APART)
def test_history_is_computed_once(name: str) -> None:
    torch.manual_seed(0)
    found = made(Sequence(APART[name]), sequence_example(), ["history"]).split
    # Per candidate, at most the item's share of the products of positions with weights and with each other.
    assert found.item_cost.gemm_flops <= found.full_cost.gemm_flops * ITEMS / TOTAL + 2 * WIDTH  # and the head
    assert found.unmasked == ()
    # Keys and values of the history, per layer, in double precision; masks and biases are of the item side.
    kept = 2 * 2 * HISTORY * WIDTH * 8
    assert kept <= found.state_bytes <= kept + HISTORY * 8


@pytest.mark.parametrize("name", COUPLED)
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
    masked = made(Sequence(APART["is_causal"]), sequence_example(), ["history"]).split
    # An estimate: what the mask wins also has residual sums and rows of the last layer that nothing reads.
    won = found.item_cost.flops - masked.item_cost.flops
    assert 0.8 * won <= unmasked.movable_flops <= found.item_cost.flops
