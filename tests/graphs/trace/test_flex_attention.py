"""``flex_attention`` is written out as products, a mask and a softmax, and splits like any attention."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from graphs.base.errors import UgsepError
from graphs.split.split import split
from tests.graphs.split.blocks.sequence_models import (
    EXACT,
    HEADS,
    HISTORY,
    ITEMS,
    TOTAL,
    WIDTH,
    Attention,
    Layer,
    Sequence,
    made,
    sequence_example,
)
from tests.suites import slow_but

CAUSAL = create_block_mask(lambda b, h, q, k: q >= k, None, None, TOTAL, TOTAL, device="cpu")


def block_mask(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return flex_attention(q, k, v, block_mask=CAUSAL)


def made_inside(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """A window of 6 positions, with padding, by a mask made in forward."""

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < 6) & there[b, j]

    mask = create_block_mask(sees, q.shape[0], None, TOTAL, TOTAL, device="cpu")
    return flex_attention(q, k, v, block_mask=mask, scale=0.4)


def score_mod(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Slopes per head and a table, capped; the mask is in the scores."""

    def changed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        capped = torch.tanh(score / 4.0) * 4.0 + layer.bias[i - j] - torch.exp2(-(h + 1) / 2) * (i - j)
        return torch.where(i >= j, capped, -math.inf)

    return flex_attention(q, k, v, score_mod=changed)


def nested_table(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s * layer.blocks[i][j], block_mask=CAUSAL)


def grouped(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Two heads of queries for one of keys and values."""
    return flex_attention(q, k[:, ::2], v[:, ::2], lambda s, b, h, i, j: s * 0.5, CAUSAL, enable_gqa=True)


def with_sums(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    mixed, sums = flex_attention(q, k, v, block_mask=CAUSAL, return_lse=True)
    return mixed * sums.sigmoid().unsqueeze(-1)


FORMS: dict[str, Attention] = {f.__name__: f for f in (block_mask, made_inside, score_mod, nested_table, grouped)}
SHARED = ("grouped",)


@pytest.mark.parametrize("name", slow_but({"made_inside", "score_mod"}, FORMS))
def test_a_causal_prefix_is_computed_once(name: str) -> None:
    torch.manual_seed(0)
    found = made(Sequence(FORMS[name], layers=1), sequence_example(), ["history"])
    assert found.error <= EXACT
    assert found.split.item_cost.gemm_flops <= found.split.full_cost.gemm_flops * ITEMS / TOTAL + 2 * WIDTH
    assert found.split.unmasked == ()
    kept = 2 * HISTORY * WIDTH // (2 if name in SHARED else 1) * 8
    assert kept <= found.split.state_bytes <= kept + HISTORY * 8
    called = {n.target for n in found.split.full.module.graph.nodes if n.op == "call_function"}
    assert not any(isinstance(target, torch._ops.HigherOrderOperator) for target in called)
    # What only makes block masks is gone.
    assert torch.ops.aten.argsort.stable not in called


def test_sums_of_powers_are_returned_too() -> None:
    torch.manual_seed(0)
    assert made(Sequence(with_sums, layers=1), sequence_example(), ["history"]).error <= EXACT


class Summed(nn.Module):
    """Its score_mod adds up a row of a table for every score."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(HEADS, 5))

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        mixed = flex_attention(u, i, i, score_mod=lambda s, b, h, q, k: s + self.table[h].sum())
        return mixed.sum((1, 2, 3))


def test_functions_of_more_than_elements_are_refused() -> None:
    example = {"u": torch.randn(3, HEADS, 4, 8), "i": torch.randn(3, HEADS, 4, 8)}
    with pytest.raises(UgsepError, match=r"flex_attention in the model .* computes with more than single elements; "):
        split(Summed().eval(), example, user=["u"], item=["i"])
