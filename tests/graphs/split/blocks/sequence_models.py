"""Small sequence models over [history | item], and the proof that a split of one is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.split.proof import prove_split
from graphs.split.split import Split, split

HISTORY, ITEMS, WIDTH, HEADS, IDS = 11, 3, 32, 4, 50
TOTAL = HISTORY + ITEMS

# Sums of at most a few hundred terms of size about 1 in double precision, through two layers.
EXACT = 1e-12

Attention = Callable[["Layer", Tensor, Tensor, Tensor, Tensor], Tensor]


def sees(total: int = TOTAL) -> Tensor:
    return torch.ones(total, total, dtype=torch.bool).tril()


def is_causal(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def buffer(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=layer.mask, scale=0.3)


def additive(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    mask = torch.full((TOTAL, TOTAL), float("-inf")).triu(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))


def written(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) / 2.0
    return scores.masked_fill(~layer.mask, float("-inf")).softmax(-1) @ v


def finite(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    scores = torch.where(layer.mask, q @ k.transpose(-2, -1), torch.tensor(-1e9, dtype=q.dtype))
    return F.dropout(F.softmax(scores, -1), 0.2, layer.training) @ v


def added(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return (q @ k.mT + (1.0 - layer.mask.to(q.dtype)) * -1e9).softmax(-1) @ v


def batched(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    a, b, c = (t.reshape(-1, TOTAL, WIDTH // HEADS) for t in (q, k, v))
    scores = torch.bmm(a, b.transpose(1, 2)).view(-1, HEADS, TOTAL, TOTAL).masked_fill(~layer.mask, float("-inf"))
    return torch.bmm(scores.softmax(-1).view(-1, TOTAL, TOTAL), c).view(-1, HEADS, TOTAL, WIDTH // HEADS)


def padded(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=layer.mask & there[:, None, None, :])


def padded_twice(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(~layer.mask, float("-inf"))
    return scores.masked_fill(~there[:, None, None, :], -1e9).masked_fill(~layer.mask, float("-inf")).softmax(-1) @ v


def users_see_users(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=layer.blocks)


def pointwise(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """HSTU: no softmax, the mask multiplies."""
    return (F.silu(q @ k.mT + layer.bias[layer.distance]) / TOTAL * layer.mask) @ v


def values_of_padding_are_zero(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Presence is cast to numbers, which lie along the positions too."""
    weights = F.silu(q @ k.mT) * layer.mask.to(q.dtype)
    return weights @ (v * (there.to(v.dtype) / TOTAL)[:, None, :, None])


def letters(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    weights = F.silu(torch.einsum("bhnd,bhmd->bhnm", q, k)) * layer.mask
    return torch.einsum("bhnm,bhmd->bhnd", weights, v)


def lowest(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """As transformers does: the smallest number of the dtype."""
    mask = torch.full((TOTAL, TOTAL), torch.finfo(q.dtype).min, dtype=q.dtype).triu(1)
    return ((q @ k.mT) * 0.5 + mask).softmax(-1) @ v


def padded_mask(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """A mask added to the scores: causal, and of the history's padding, which hides all of some rows."""
    later = torch.zeros(TOTAL, TOTAL, dtype=q.dtype).masked_fill(~layer.mask, float("-inf"))
    padding = torch.zeros_like(there, dtype=q.dtype).masked_fill(~there, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=later + padding[:, None, None, :])


def padding_chosen(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    later = torch.zeros(TOTAL, TOTAL, dtype=q.dtype).masked_fill(~layer.mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.where(there[:, None, None], later, float("-inf")))


def padded_but_itself(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Every position sees itself, so that a finite number is enough."""
    sees = torch.logical_and(layer.mask, there[:, None, None] | torch.eye(TOTAL, dtype=torch.bool))
    return (q @ k.mT).masked_fill(~sees, torch.finfo(q.dtype).min).softmax(-1) @ v


def grouped(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Two heads of queries for one of keys and values."""
    sees = layer.mask & there[:, None, None]
    return F.scaled_dot_product_attention(q, k[:, ::2], v[:, ::2], attn_mask=sees, enable_gqa=True)


def interleaved(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    k, v = (t[:, ::2].repeat_interleave(2, 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def repeated(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """As transformers repeats keys and values."""
    k, v = (t[:, ::2, None].expand(-1, -1, 2, -1, -1).reshape(q.shape) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def one_head(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """All heads of queries share one of keys and values."""
    weights = (q @ k[:, :1].mT).masked_fill(~layer.mask, float("-inf")).softmax(-1)
    return weights @ v[:, :1]


def unmasked(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def finite_padded(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """A row that sees nothing is the mean of all values, the item's too."""
    scores = (q @ k.mT).masked_fill(~(layer.mask & there[:, None, None, :]), -1e9)
    return scores.softmax(-1) @ v


def ten_thousand(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Queries and keys come from a norm, so that scores are smaller than that for certain."""
    return (q @ k.mT).masked_fill(~layer.mask, -1e4).softmax(-1) @ v


def half_lowest(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """The smallest number of 16-bit floats."""
    return (q @ k.mT + torch.full((TOTAL, TOTAL), -65504.0, dtype=q.dtype).triu(1)).softmax(-1) @ v


def of_squares(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Below other scores, but for all we know not by as much as it takes."""
    return ((q * q) @ k.mT).masked_fill(~layer.mask, -1e4).softmax(-1) @ v


def masked_later(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """The softmax has summed over the item positions before the mask."""
    return ((q @ k.mT).softmax(-1) * layer.mask) @ v


APART: dict[str, Attention] = {
    f.__name__: f
    for f in (
        is_causal,
        buffer,
        additive,
        written,
        finite,
        added,
        batched,
        padded,
        padded_twice,
        users_see_users,
        lowest,
        padded_mask,
        padding_chosen,
        padded_but_itself,
        ten_thousand,
        half_lowest,
    )
} | {f.__name__: f for f in (pointwise, values_of_padding_are_zero, letters)}
SHARED: dict[str, Attention] = {f.__name__: f for f in (grouped, interleaved, repeated, one_head)}
COUPLED: dict[str, Attention] = {f.__name__: f for f in (unmasked, finite_padded, of_squares, masked_later)}
FINITE = ("finite_padded", "of_squares")


class Layer(nn.Module):
    """Pre-norm: attention and a gated feed-forward network, each with a residual sum."""

    mask: Tensor
    blocks: Tensor
    distance: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.before, self.after = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.joint = nn.Linear(WIDTH, 4 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up, self.down = (nn.Linear(a * WIDTH, b * WIDTH) for a, b in ((1, 2), (1, 2), (2, 1)))
        self.bias = nn.Parameter(torch.randn(TOTAL))
        blocks = torch.ones(TOTAL, TOTAL, dtype=torch.bool)
        blocks[:HISTORY, HISTORY:] = False
        self.register_buffer("mask", sees())
        self.register_buffer("blocks", blocks)
        self.register_buffer("distance", (torch.arange(TOTAL)[:, None] - torch.arange(TOTAL)[None]).clamp_min(0))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        u, q, k, v = self.joint(self.before(x)).chunk(4, -1)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = self.attention(self, q, k, v, there).transpose(1, 2).flatten(2)
        x = x + self.out(F.layer_norm(mixed, (WIDTH,)) * F.silu(u))
        y = self.after(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Sequence(nn.Module):
    """Scores the last position of [history | item]; 0 is padding."""

    def __init__(self, attention: Attention, layers: int = 2) -> None:
        super().__init__()
        self.ids, self.places = nn.Embedding(IDS, WIDTH), nn.Embedding(TOTAL, WIDTH)
        self.layers = nn.ModuleList([Layer(attention) for _ in range(layers)])
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        joined = torch.cat([history, item], 1)
        there = torch.cat([history != 0, torch.ones_like(item, dtype=torch.bool)], 1)
        places = torch.arange(TOTAL).expand(joined.shape[0], TOTAL)
        x = self.ids(joined) * WIDTH**0.5 + self.places(places)
        for layer in self.layers:
            x = layer(x, there)
        return self.head(x[:, -1]).squeeze(-1)


@dataclass(frozen=True)
class Made:
    split: Split
    error: float


def made(model: nn.Module, example: dict[str, Tensor], user: list[str]) -> Made:
    """Split a model in double precision and compare it with the whole on fresh rows of several users."""
    example = {n: v.double() if v.is_floating_point() else v for n, v in example.items()}
    result = split(model.double().eval(), example, user=user, item=[n for n in example if n not in user])
    proof = prove_split(result, tolerance=EXACT, candidates=(1, 2, 7), users=(1, 3))
    return Made(result, proof.max_rel)


def sequence_example(rows: int = 5) -> dict[str, Tensor]:
    return {
        "history": torch.randint(0, IDS, (rows, HISTORY)),
        "item": torch.randint(1, IDS, (rows, ITEMS)),
    }
