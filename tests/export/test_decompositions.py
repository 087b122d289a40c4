"""Ops whose exported form must give PyTorch's values: integers of 64 bits, and attention without keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.split.split import split

EDGES = torch.tensor(
    [0, 1, -1, 6, -6, 7, -7, 2**24 + 1, -(2**24) - 1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63) + 1]
)


class Hashed(nn.Module):
    """A quotient-remainder embedding of an item's id, beside a user feature."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part
        self.user = nn.Linear(3, 5)
        self.table = nn.Embedding(101, 5)

    def forward(self, user: Tensor, key: Tensor) -> Tensor:
        return (self.user(user) * self.table(self.part(key) % 101)).sum(1)


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "div floor": lambda k: torch.div(k, 7, rounding_mode="floor"),
    "div trunc": lambda k: torch.div(k, 7, rounding_mode="trunc"),
    "div floor by a tensor": lambda k: torch.div(k, torch.tensor(-7), rounding_mode="floor"),
    "div trunc by a tensor": lambda k: torch.div(k, torch.tensor(-7), rounding_mode="trunc"),
    "floor_divide": lambda k: k // 7,
    "fmod": lambda k: torch.fmod(k, 7),
    "fmod by a tensor": lambda k: torch.fmod(k, torch.tensor(-7)),
    "remainder": lambda k: torch.remainder(k, -7),
    "sum": lambda k: torch.stack([k // 3, k // 5], 1).sum(1),
    "sum of all axes but the rows": lambda k: torch.stack([k // 3, k // 5], 1)[:, None].sum((1, -1), keepdim=True)[
        :, 0, 0
    ],
    "multiply, xor and shift": lambda k: ((k * 2654435761) ^ (k >> 15)) & 0xFFFFFFFF,
}


@pytest.mark.parametrize("name", PARTS)
def test_an_integer_op_is_exact_over_the_whole_range(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Hashed(PARTS[name]).eval()
    made = split(module, (torch.randn(7, 3), torch.arange(7)), user=("user",), item=("key",))
    wide = torch.randint(-(2**63), 2**63 - 1, (64,))
    feeds = {"user": torch.randn(len(EDGES) + 64, 3), "key": torch.cat([EDGES, wide])}
    stamp = Stamp("hashed", "full", "fp32", ())
    rows = {n: "candidates" for n in feeds}
    file = export_subgraph(made.full, feeds, rows, tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    (wanted,) = made.full(feeds).values()
    # A wrong row of the table changes a score by tenths; FP32 sums of 5 terms differ by 1e-6.
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


class Attention(nn.Module):
    """Target attention of an item over a user's padded history."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.history, self.item = nn.Embedding(50, 8), nn.Embedding(40, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        padding = history == 0
        keys, query = self.history(history), self.item(item)[:, None]
        if self.form == "module":
            attended, _ = self.attention(query, keys, keys, key_padding_mask=padding, need_weights=False)
        elif self.form == "bool mask":
            attended = F.scaled_dot_product_attention(query, keys, keys, attn_mask=~padding[:, None])
        elif self.form == "float mask":
            added = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
            attended = F.scaled_dot_product_attention(query, keys, keys, attn_mask=added[:, None], scale=0.3)
        elif self.form == "grouped heads":
            heads = torch.stack([query, -query, query + 1, 2 * query], 1)  # [N, 4, 1, D]
            pair = torch.stack([keys, keys.flip(-1)], 1)  # [N, 2, S, D]
            mask = ~padding[:, None, None]
            attended = F.scaled_dot_product_attention(heads, pair, pair, attn_mask=mask, enable_gqa=True).sum(1)
        else:
            attended = F.scaled_dot_product_attention(keys, keys, keys, is_causal=True)[:, -1:]
        return (attended * query).sum((1, 2))


@pytest.mark.parametrize("form", ["module", "bool mask", "float mask", "grouped heads", "causal"])
def test_attention_gives_pytorch_s_values_without_any_key(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attention(form).eval()
    made = split(module, (torch.randint(1, 50, (7, 6)), torch.arange(7)), user=("history",), item=("item",))
    patterns = torch.tensor([[int(b) for b in f"{n:06b}"] for n in range(64)])  # every padding, none kept included
    feeds = {"history": torch.randint(1, 50, (64, 6)) * patterns, "item": torch.randint(0, 40, (64,))}
    stamp = Stamp("attention", "full", "fp32", ())
    file = export_subgraph(made.full, feeds, {n: "candidates" for n in feeds}, tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    with torch.no_grad():
        wanted = module(feeds["history"], feeds["item"]).numpy()
    assert np.isfinite(wanted).all()
    # FP32 sums of 8 terms in another order, on values up to a few tens.
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
