"""Ops on each position alone keep the user's positions apart: every form against the whole model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graphs.split.blocks.sequence_models import HISTORY, IDS, TOTAL, WIDTH, made, sequence_example

ORDER = [2, 13, 12, 0, 0, 5, 4]


class Tokens(nn.Module):
    hidden: Tensor
    order: Tensor

    def __init__(self, work: Callable[["Tokens", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.ids, self.others = nn.Embedding(IDS, WIDTH), nn.Embedding(IDS, WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("hidden", torch.rand(TOTAL, 1) < 0.3)
        self.register_buffer("order", torch.tensor(ORDER))

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        ids = torch.cat([history, item], 1)
        y = self.work(self, self.ids(ids), ids)
        return (self.mix(y).tanh() * torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)[:, None]).flatten(1).sum(-1)


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def angles(x: Tensor) -> Tensor:
    steps = torch.arange(TOTAL, dtype=x.dtype)[:, None] / 10.0 ** torch.arange(WIDTH // 2, dtype=x.dtype)
    return torch.cat([steps, steps], -1)


FORMS: dict[str, Callable[[Tokens, Tensor, Tensor], Tensor]] = {
    "lookups": lambda m, x, ids: x,
    "residual sum": lambda m, x, ids: x + m.others(ids),
    "product": lambda m, x, ids: x * m.others(ids).sigmoid(),
    "difference": lambda m, x, ids: torch.sub(x, m.others(ids), alpha=0.5),
    "one gate per position": lambda m, x, ids: x * (ids != 0).unsqueeze(-1),
    "where": lambda m, x, ids: torch.where(m.hidden, x, m.others(ids)),
    "masked fill": lambda m, x, ids: x.masked_fill(m.hidden, 0.5),
    "masked by data": lambda m, x, ids: x.masked_fill((ids == 0)[..., None], 0.0),
    "joined widths": lambda m, x, ids: torch.cat([x, m.others(ids)], -1)[..., ::2],
    "stacked": lambda m, x, ids: torch.stack([x, m.others(ids)], 1).sum(1),
    "rotary": lambda m, x, ids: x * angles(x).cos() + turned(x) * angles(x).sin(),
    "softmax over the width": lambda m, x, ids: x.softmax(-1) * x.mean(-1, keepdim=True),
    "unbound": lambda m, x, ids: torch.cat(x.unflatten(-1, (2, -1)).unbind(2)[::-1], -1),
    "constant positions": lambda m, x, ids: x[:, m.order],
    "selected positions": lambda m, x, ids: x.index_select(1, m.order),
    "dropout": lambda m, x, ids: F.dropout(x, 0.3, m.training) + x,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_users_positions_stay_apart(name: str) -> None:
    torch.manual_seed(0)
    found = made(Tokens(FORMS[name]), sequence_example(), ["history"]).split
    picked = ORDER if "positions" in name else range(TOTAL)
    item = sum(position >= HISTORY for position in picked)
    assert found.item_cost.gemm_flops == found.full_cost.gemm_flops * item // len(picked)
