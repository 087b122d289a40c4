"""Joins with the empty tensor that a cache of keys and values starts as."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphs.split.proof import prove_split
from graphs.split.split import split
from graphs.trace.trace import trace


class Cached(nn.Module):
    """Causal attention whose keys and values are joined to an empty cache, as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.queries, self.keys, self.values = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        seen = self.tokens(torch.cat([history, item], 1))[:, None]  # [N, 1, T, 16]
        keys, values = (torch.cat([torch.tensor([]), of(seen)], -2) for of in (self.keys, self.values))
        mixed = F.scaled_dot_product_attention(self.queries(seen), keys, values, is_causal=True)
        return self.head(mixed[:, 0, -1]).squeeze(-1)


class Longer(nn.Module):
    """A join of two tensors and an empty one, and one of vectors, of which an empty one is a piece like any other."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        none = torch.tensor([])
        return torch.cat([none, a, b], 1).sum(1) + torch.cat([none, torch.ones(3)]).sum() * b[:, 0]


def cats(module: nn.Module, example: dict[str, Tensor]) -> list[int]:
    """Return the number of pieces of every join in a traced graph."""
    graph = trace(module.eval(), example).module.graph
    found = graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    return [len(n.args[0]) for n in found]


def test_the_history_of_a_model_with_a_cache_is_the_users() -> None:
    torch.manual_seed(0)
    example = {"history": torch.randint(0, 50, (4, 12)), "item": torch.randint(0, 50, (4, 3))}
    found = split(Cached().eval(), example, user=["history"], item=["item"])
    assert prove_split(found).max_rel <= 1e-6
    assert found.reusable_share > 0.5  # 12 of 15 positions, less the item's queries of them


def test_empty_pieces_are_dropped_and_scores_stay() -> None:
    example = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    assert cats(Longer(), example) == [2, 2]
    traced = trace(Longer().eval(), example)
    (after,) = traced.module(*traced.example)
    torch.testing.assert_close(after, Longer()(*traced.example))


class Towers(nn.Module):
    """Two towers that read their part of one table of features; the items have no feature of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(6, 8), nn.Linear(4, 8)

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        mine = torch.cat([u, i[:, :0]], 1)  # [N, 6]
        return (torch.relu(self.user(mine.reshape(-1, 6))) * self.item(torch.cat([i, u[:, :0]], 1))).sum(1)


def test_a_tower_joined_to_an_empty_piece_of_the_other_side_is_the_users() -> None:
    torch.manual_seed(0)
    found = split(Towers().eval(), {"u": torch.randn(5, 6), "i": torch.randn(5, 4)}, user=["u"], item=["i"])
    assert prove_split(found).max_rel <= 1e-6
    assert found.state_bytes == 8 * 4  # the tower's output
    assert found.reusable_share > 0.5  # 6 of 10 columns


class Selected(nn.Module):
    """A join with a tensor whose length depends on data, which is not empty."""

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        chosen = torch.masked_select(i, i > 0)
        return torch.cat([chosen, torch.ones(2)]).sum() * (u * i).sum(1)


def test_lengths_that_depend_on_data_are_not_empty() -> None:
    assert cats(Selected(), {"u": torch.randn(3, 4), "i": torch.randn(3, 4)}) == [2]
