"""Sums so far, recurrences and convolutions over [history | item] start with what is the user's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graphs.split.blocks.sequence_models import IDS, WIDTH, made, sequence_example
from tests.suites import slow_but


class Ordered(nn.Module):
    """A step that goes through positions in order, then a layer, of which the last positions are scored."""

    def __init__(self, work: Callable[["Ordered", Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.ids = nn.Embedding(IDS, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, 2, batch_first=True)
        self.lstm = nn.LSTM(WIDTH, WIDTH)
        self.wide = nn.Conv1d(WIDTH, WIDTH, 3, dilation=2)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding=3)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        y = self.work(self, self.ids(torch.cat([history, item], 1)))
        return self.mix(y).tanh()[:, -item.shape[1] :].flatten(1).sum(-1)


def turned(work: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: work(x.transpose(1, 2)).transpose(1, 2)


FORMS: dict[str, Callable[[Ordered, Tensor], Tensor]] = {
    "cumsum": lambda m, x: m.mix(x).cumsum(1)[..., :WIDTH],
    "cumsum over the width": lambda m, x: m.mix(x).cumsum(-1)[..., :WIDTH].cumsum(1),
    "count so far": lambda m, x: m.mix(x)[..., :WIDTH] * (x[..., :1] > 0).cumsum(1, dtype=torch.int32),
    "gru": lambda m, x: m.gru(x)[0],
    "gru and its state": lambda m, x: m.gru(x)[0] + m.gru(x)[1][-1][:, None],
    "lstm, positions first": lambda m, x: m.lstm(x.transpose(0, 1))[0].transpose(0, 1),
    "lstm and its cells": lambda m, x: (lambda r: r[0].transpose(0, 1) + r[1][1][0][:, None])(
        m.lstm(x.transpose(0, 1))
    ),
    "convolution, padded before": lambda m, x: turned(lambda t: m.wide(F.pad(t, (4, 0))))(x),
    "convolution, padded on both sides": lambda m, x: turned(lambda t: m.depthwise(t)[..., : t.shape[-1]])(x),
    "token shift": lambda m, x: m.mix(F.pad(x, (0, 0, 1, -1)))[..., :WIDTH] + x,
    "padded after": lambda m, x: m.mix(F.pad(x, (0, 0, 0, 2)))[:, 2:, :WIDTH].cumsum(1),
}


@pytest.mark.parametrize("name", slow_but(["cumsum", "gru and its state", "convolution, padded before"], FORMS))
def test_users_positions_come_first(name: str) -> None:
    torch.manual_seed(0)
    found = made(Ordered(FORMS[name]), sequence_example(), ["history"]).split
    # 3 of 14 positions are the item's, and of the others a convolution and a shift need a few again.
    assert found.item_cost.gemm_flops < 0.5 * found.full_cost.gemm_flops


def test_a_recurrence_of_both_directions_stays_whole() -> None:
    torch.manual_seed(0)
    module = Ordered(lambda m, x: m.gru(x)[0])
    module.gru = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
    made(module, sequence_example(), ["history"])
