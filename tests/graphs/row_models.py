"""A model that runs any function on its inputs, for the tests of row independence."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

N, T, D = 4, 3, 6


class Inner(nn.Module):
    def __init__(self, work: Callable[["Inner", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.norm = nn.BatchNorm1d(D)
        self.drop = nn.Dropout(0.5)
        self.table = nn.Parameter(torch.randn(T, D))
        self.weight = nn.Parameter(torch.randn(T, D, 5))
        self.layer = nn.Linear(D, 5)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.gru = nn.GRU(D, 5, batch_first=True)
        self.lstm = nn.LSTM(D, 5, batch_first=False)
        self.conv = nn.Conv1d(T, 2, 3)
        self.bag = nn.EmbeddingBag(9, D, mode="mean")
        self.encoder = nn.TransformerEncoderLayer(D, 2, 7, batch_first=True)
        self.to_zeros = nn.MultiheadAttention(D, 2, batch_first=True, add_zero_attn=True)
        self.extra_keys = nn.MultiheadAttention(D, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.work(self, x, ids)


class Outer(nn.Module):
    def __init__(self, work: Callable[[Inner, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = Inner(work)

    def forward(self, x: Tensor, ids: Tensor, item: Tensor) -> Tensor:
        return self.body(x, ids).reshape(x.shape[0], -1).cumsum(-1).sum(-1) * item


def example() -> dict[str, Tensor]:
    return {"x": torch.randn(N, T, D), "ids": torch.randint(0, 3, (N, T)), "item": torch.randn(N)}
