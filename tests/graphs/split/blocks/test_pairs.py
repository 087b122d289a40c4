"""Dots of all pairs of features: those of two user features are computed once, against the whole model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graphs.split.blocks.sequence_models import IDS, made

USERS, ITEMS, WIDTH, OUT = 9, 4, 24, 20
FEATURES = USERS + ITEMS + 1


class Dots(nn.Module):
    """The dense part of DLRM: a bottom network, embeddings, dots of pairs, a top network."""

    upper: Tensor
    flat: Tensor

    def __init__(self, read: Callable[["Dots", Tensor], Tensor], order: list[int]) -> None:
        super().__init__()
        self.read = read
        self.tables = nn.ModuleList([nn.Embedding(IDS, WIDTH) for _ in range(USERS + ITEMS)])
        self.bottom = nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU())
        pairs = len(order) * (len(order) - 1) // 2
        self.order = order
        self.top = nn.Sequential(nn.Linear(WIDTH + pairs, OUT), nn.ReLU(), nn.Linear(OUT, 1))
        upper = torch.triu_indices(len(order), len(order), 1)
        self.register_buffer("upper", upper)
        self.register_buffer("flat", upper[0] * len(order) + upper[1])

    def forward(self, user: Tensor, item: Tensor, dense: Tensor) -> Tensor:
        ids = torch.cat([user, item], 1).unbind(1)
        bottom = self.bottom(dense)
        vectors = [bottom, *(table(i) for table, i in zip(self.tables, ids, strict=True))]
        x = torch.stack([vectors[i] for i in self.order], 1)
        return self.top(torch.cat([bottom, self.read(self, x)], 1)).squeeze(-1)


def upper(m: Dots, x: Tensor) -> Tensor:
    return torch.bmm(x, x.transpose(1, 2))[:, m.upper[0], m.upper[1]]


def lower(m: Dots, x: Tensor) -> Tensor:
    return (x @ x.mT)[:, m.upper[1], m.upper[0]]


def flat(m: Dots, x: Tensor) -> Tensor:
    return torch.einsum("bid,bjd->bij", x, x).flatten(1)[:, m.flat]


READS: dict[str, Callable[[Dots, Tensor], Tensor]] = {f.__name__: f for f in (upper, lower, flat)}
ORDERS = {
    "user first": [*range(1, 1 + USERS), 0, *range(1 + USERS, FEATURES)],
    "dense first": list(range(FEATURES)),
    "mixed": [3, 0, 11, 1, 2, 13, 4, 5, 6, 12, 7, 8, 10, 9],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("read", READS)
def test_pairs_of_user_features_are_computed_once(read: str, order: str) -> None:
    torch.manual_seed(0)
    example = {
        "user": torch.randint(0, IDS, (5, USERS)),
        "item": torch.randint(0, IDS, (5, ITEMS)),
        "dense": torch.randn(5, 5),
    }
    found = made(Dots(READS[read], ORDERS[order]), example, ["user"]).split
    together = USERS * (USERS - 1) // 2
    # The dots of two user features, both ways, and their columns of the top network.
    saved = 2 * USERS**2 * WIDTH + 2 * together * OUT
    assert found.full_cost.gemm_flops - found.item_cost.gemm_flops >= saved
    assert found.state_bytes <= 8 * (USERS * WIDTH + OUT)
