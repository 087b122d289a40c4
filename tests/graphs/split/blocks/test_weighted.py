"""Pooling by a learned query over [history | item]: the user's positions are summed once, against the whole model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graphs.split.blocks.sequence_models import HISTORY, IDS, ITEMS, WIDTH, made, sequence_example

QUERIES = 2


class Pool(nn.Module):
    def __init__(self, work: Callable[["Pool", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.ids, self.work = nn.Embedding(IDS, WIDTH), work
        self.query = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.hidden, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        ids = torch.cat([history, item], 1)
        x = self.ids(ids)
        y = self.work(self, x, ids != 0)
        return (y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).flatten(1).sum(-1)


def by_vector(m: Pool, x: Tensor, there: Tensor) -> Tensor:
    return (((torch.tanh(m.hidden(x)) @ m.query[0]).softmax(1))[:, None] @ x).squeeze(1)


def by_sum(m: Pool, x: Tensor, there: Tensor) -> Tensor:
    return (F.dropout(m.score(torch.tanh(m.hidden(x))).softmax(1), 0.1, m.training) * x).sum(1)


def by_queries(m: Pool, x: Tensor, there: Tensor) -> Tensor:
    """Several interests: attention of parameters."""
    query = m.query.expand(x.shape[0], -1, -1)
    return F.scaled_dot_product_attention(query, x, m.hidden(x))


def padded(m: Pool, x: Tensor, there: Tensor) -> Tensor:
    """All of the history may be padding, and in one row all positions."""
    scores = m.score(x).squeeze(-1).masked_fill(~there, float("-inf"))
    return (scores.softmax(1)[..., None] * x).sum(1)


def padded_by_a_number(m: Pool, x: Tensor, there: Tensor) -> Tensor:
    scores = (m.query @ x.mT).masked_fill(~there[:, None], -1e9)
    return scores.softmax(-1) @ x


def padded_safely(m: Pool, x: Tensor, there: Tensor) -> Tensor:
    query = m.query.expand(x.shape[0], -1, -1)
    return F.scaled_dot_product_attention(query, x, x, attn_mask=there[:, None].expand(-1, QUERIES, -1))


def far_apart(m: Pool, x: Tensor, there: Tensor) -> Tensor:
    return (m.query @ x.mT * 1e3).softmax(-1) @ x


FORMS = {f.__name__: f for f in (by_vector, by_sum, by_queries, padded, padded_by_a_number, padded_safely, far_apart)}


@pytest.mark.parametrize("name", FORMS)
def test_the_history_is_summed_once(name: str) -> None:
    torch.manual_seed(0)
    example = sequence_example()
    example["item"] = torch.randint(0, IDS, example["item"].shape)
    found = made(Pool(FORMS[name]), example, ["history"]).split
    assert any(h.saved_flops for h in found.hoisted)
    # Per query, the sum of the user's positions, their maximum and the sum of their weights.
    assert found.state_bytes <= 8 * QUERIES * (WIDTH + 2)
    assert found.item_cost.gemm_flops <= found.full_cost.gemm_flops * ITEMS / (HISTORY + ITEMS)


def test_scores_that_need_the_item_stay() -> None:
    def target(m: Pool, x: Tensor, there: Tensor) -> Tensor:
        keys = m.hidden(x)
        return (x[:, -1:] @ keys.mT).softmax(-1) @ keys

    torch.manual_seed(0)
    found = made(Pool(target), sequence_example(), ["history"]).split
    assert found.state_bytes >= 8 * HISTORY * WIDTH
