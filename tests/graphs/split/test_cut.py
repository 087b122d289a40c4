"""The user state is the smallest set of tensors that the item side needs, without repeating a product."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphs.base.cost import gemm_flops
from graphs.split.proof import prove_split
from graphs.split.split import Split, split

N, D = 4, 8


class Meeting(nn.Module):
    def __init__(self, work: Callable[["Meeting", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.small = nn.Linear(D, 3)
        self.wide = nn.Linear(3, 40)
        self.table = nn.Embedding(10, 16)

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        return self.work(self, u, i)


def cut(work: Callable[[Meeting, Tensor, Tensor], Tensor]) -> Split:
    torch.manual_seed(0)
    split_model = split(Meeting(work), {"u": torch.randn(N, D), "i": torch.randn(N, 40)}, user=["u"], item=["i"])
    assert prove_split(split_model).max_rel <= 1e-6
    assert not any(gemm_flops(n) for n in split_model.cut.recomputed)
    return split_model


# state bytes per user of the minimum cut, and of the plain cut (what the item side reads)
CASES: dict[str, tuple[Callable[[Meeting, Tensor, Tensor], Tensor], int, int]] = {
    "expanded value": (lambda m, u, i: (m.small(u).sum(-1, True).expand(-1, 40) * i).sum(-1), 4, 160),
    "joined twice": (lambda m, u, i: (torch.cat([s := m.small(u), *[s] * 12, s[:, :1]], 1) * i).sum(-1), 12, 160),
    "one source, many readers": (
        lambda m, u, i: ((s := m.small(u)).sin() * i[:, :3] + s.cos() * i[:, 3:6] + s.exp() * i[:, 6:9]).sum(-1),
        12,
        36,
    ),
    "a product never runs per candidate": (lambda m, u, i: (m.wide(m.small(u)) * i).sum(-1), 160, 160),
    "two inputs smaller than the result": (
        lambda m, u, i: ((m.small(u)[:, :, None] * m.small(u * 2)[:, None]).flatten(1) * i[:, :9]).sum(-1),
        24,
        36,
    ),
    "one result smaller than two inputs": (
        lambda m, u, i: ((m.wide(m.small(u)) * m.wide(m.small(u * 2)))[:, :1] * i).sum(-1),
        4,
        4,
    ),
    "a lookup never runs per candidate": (
        lambda m, u, i: (m.table(u[:, 0].abs().clamp(max=9).long()) * i[:, :16]).sum(-1),
        64,
        64,
    ),
    "mask from a short vector": (
        lambda m, u, i: (i * (torch.arange(40) < m.small(u)[:, :1])).sum(-1),
        4,
        40,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_state_is_minimal(name: str) -> None:
    work, least, plain = CASES[name]
    split_model = cut(work)
    assert split_model.state_bytes == least
    assert split_model.plain_state_bytes == plain


def test_among_equal_cuts_the_one_nearest_the_items_wins() -> None:
    split_model = cut(lambda m, u, i: (m.small(u).exp().sin().tanh() * i[:, :3]).sum(-1))
    assert [str(n.target) for n in split_model.cut.state] == ["aten.tanh.default"]
    assert split_model.cut.recomputed == ()
