"""Cross layers of low rank (DCN-V2 of TorchRec): the user's columns are never computed for a candidate."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graphs.split.blocks.sequence_models import EXACT, made

USER, ITEM, RANK, LAYERS, HIDDEN = 160, 24, 2, 3, 5
WIDTH = USER + ITEM


class Cross(nn.Module):
    """``x' = x0 * (W V x + b) + x``, and a layer over the last one; the user's columns are around the item's."""

    def __init__(self, rank: int = RANK) -> None:
        super().__init__()
        self.down, self.up = (
            nn.ModuleList(nn.Linear(a, b, bias=False) for _ in range(LAYERS))
            for a, b in ((WIDTH, rank), (rank, WIDTH))
        )
        self.bias = nn.ParameterList(torch.randn(WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, HIDDEN)

    def forward(self, u: Tensor, v: Tensor, i: Tensor) -> Tensor:
        first = torch.cat([u, i, v], 1)
        x = first
        for down, up, bias in zip(self.down, self.up, self.bias, strict=True):
            x = first * (up(down(x)) + bias) + x
        return self.head(x).relu().sum(1)


def example() -> dict[str, Tensor]:
    return {"u": torch.randn(5, USER - 60), "v": torch.randn(5, 60), "i": torch.randn(5, ITEM)}


def test_a_candidate_computes_its_own_columns_only() -> None:
    torch.manual_seed(0)
    found = made(Cross(), example(), ["u", "v"])
    assert found.error <= EXACT
    before = sum(range(LAYERS))  # cross layers before each, summed
    own = 2 * ITEM * (2 * LAYERS * RANK + HIDDEN)
    by_matrices = 2 * (RANK * RANK * before + RANK * HIDDEN * LAYERS)
    assert found.split.item_cost.gemm_flops == own + by_matrices
    # The matrices, and the sums of the user's columns, in double precision.
    sums = RANK * LAYERS + HIDDEN
    assert found.split.state_bytes == 8 * (by_matrices // 2 + sums)


class Read(Cross):
    """Forms that the algebra does not cover, or not all of it: read whole, other sums and factors."""

    def __init__(self, work: Callable[["Read", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.biased = nn.Linear(RANK, WIDTH)

    def forward(self, u: Tensor, v: Tensor, i: Tensor) -> Tensor:
        first = torch.cat([u, i, v], 1)
        crossed = (self.biased(self.down[0](first)) + self.bias[0]) * first
        return self.work(self, first, crossed)


READ: dict[str, Callable[[Read, Tensor, Tensor], Tensor]] = {
    "whole": lambda m, x, y: (x + y).cumsum(1)[:, -1],
    "both": lambda m, x, y: m.head(y + x).sum(1) + (y * y).sum(1),
    "without a sum": lambda m, x, y: m.head(y).sum(1),
    "two crosses": lambda m, x, y: m.head((y + x) + (x + (m.up[0](m.down[1](x)) * x))).sum(1),
    "another factor": lambda m, x, y: m.head(y + m.up[0](m.down[1](x)) * (2 * x)).sum(1),
    "another base": lambda m, x, y: m.head(y + x.tanh()).sum(1),
    "columns of the item": lambda m, x, y: m.head(y + x[:, -1:].exp() * m.up[0](m.down[1](x))).sum(1),
    "a difference": lambda m, x, y: m.head(torch.sub(y, x)).sum(1),
    "twice": lambda m, x, y: m.head(torch.add(y, x, alpha=2)).sum(1),
}


@pytest.mark.parametrize("name", READ)
def test_other_forms_are_exact(name: str) -> None:
    torch.manual_seed(0)
    assert made(Read(READ[name]), example(), ["u", "v"]).error <= EXACT


def test_high_ranks_stay() -> None:
    """A matrix of 32 x 32 per user is more to read than the columns that it replaces."""
    torch.manual_seed(0)
    found = made(Cross(32), example(), ["u", "v"])
    assert found.error <= EXACT
    assert not any(s.row_shape == (32, 32) for s in found.split.state)


@pytest.mark.slow
def test_the_cross_net_of_torchrec() -> None:
    crossnet = pytest.importorskip("torchrec.modules.crossnet")
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cross = crossnet.LowRankCrossNet(WIDTH, LAYERS, RANK)
            self.head = nn.Linear(WIDTH, HIDDEN)

        def forward(self, u: Tensor, v: Tensor, i: Tensor) -> Tensor:
            return self.head(self.cross(torch.cat([u, v, i], 1))).relu().sum(1)

    found = made(Model(), example(), ["u", "v"])
    assert found.error <= EXACT
    # At most the item's columns, and the matrices of three layers and the head.
    assert found.split.item_cost.gemm_flops <= 2 * ITEM * (2 * LAYERS * RANK + HIDDEN) + 2 * RANK * LAYERS * (
        RANK + HIDDEN
    )
    assert found.split.reusable_share > 0.7
