"""Histories of any length: the graphs equal the model at each, in PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX
from graphs.split.lengths import AnyLength, split_for_any_length

IDS, WIDTH, HEADS, LONGEST = 30, 12, 2, 13

Attention = Callable[["Layer", Tensor, Tensor, Tensor, Tensor], Tensor]


def is_causal(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def padded(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    places = torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(places[:, None] >= places) & there[:, None, None])


def pointwise(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """HSTU: a bias by distance, and a mask that multiplies."""
    places = torch.arange(q.shape[2])
    distance = places[:, None] - places
    weights = F.silu(q @ k.mT + layer.bias[:, distance.clamp_min(0)])
    return (weights * (distance >= 0).to(q.dtype)) @ (v * there[:, None, :, None].to(q.dtype) / q.shape[2])


class Layer(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.norm, self.joint = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(HEADS, LONGEST + 3))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.joint(self.norm(x)).chunk(3, -1))
        x = x + self.attention(self, q, k, v, there).transpose(1, 2).flatten(2)
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    """Scores the last of [context | history | item, item]; id 0 is padding."""

    def __init__(self, attention: Attention, layers: int = 2) -> None:
        super().__init__()
        self.ids, self.places = nn.Embedding(IDS, WIDTH), nn.Parameter(torch.randn(LONGEST + 3, WIDTH))
        self.context = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList([Layer(attention) for _ in range(layers)])
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, profile: Tensor, history: Tensor, item: Tensor) -> Tensor:
        x = torch.cat([self.context(profile)[:, None], self.ids(history), self.ids(item)], 1)
        one = torch.ones_like(history[:, :1], dtype=torch.bool)
        there = torch.cat([one, history != 0, torch.ones_like(item, dtype=torch.bool)], 1)
        x = x + self.places[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, there)
        return self.head(x[:, -1]).squeeze(-1)


def example(rows: int, length: int) -> dict[str, Tensor]:
    return {
        "profile": torch.randn(rows, 3, dtype=torch.float64),
        "history": torch.randint(0, IDS, (rows, length)),
        "item": torch.randint(1, IDS, (rows, 2)),
    }


def divided(model: nn.Module) -> AnyLength:
    return split_for_any_length(
        model, example(5, LONGEST), user=["profile", "history"], item=["item"], history={"history": 1}
    )


def error_at(made: AnyLength, model: nn.Module, length: int) -> float:
    """Return the largest difference of the graphs from the model, for 3 users of 7 candidates."""
    rows, items = example(3, length), example(7, length)["item"]
    users = {n: rows[n] for n in ("profile", "history")}
    index = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    many = {n: v[index] for n, v in users.items()}
    scores = made.split.item({"item": items, **made.split.user(users), USER_INDEX: index})["output"]
    whole = made.split.full({"item": items, **many})["output"]
    with torch.no_grad():
        expected = model(**many, item=items)
    assert torch.equal(whole, expected)
    return float((scores - expected).abs().max())


@pytest.mark.parametrize(
    ("attention", "layers"),
    [(padded, 1), *(pytest.param(a, 2, marks=pytest.mark.slow) for a in (is_causal, padded, pointwise))],
)
def test_every_length_is_exact(attention: Attention, layers: int) -> None:
    torch.manual_seed(1)
    model = Model(attention, layers).double().eval()
    made = divided(model)
    # Keys and values of context and history, per layer; with padding, also which positions of the history are there.
    state = [more for name, (_, more) in made.axes.items() if name != "history"]
    assert sorted(state) == [0] * (attention is padded) + [1] * 2 * layers
    assert made.axes["history"] == (1, 0)
    for length in (1, 2, 6, 12, LONGEST):
        # Sums of at most a few hundred terms of size about 1 in double precision, through two layers.
        assert error_at(made, model, length) < 1e-12


class Other(nn.Module):
    """Takes the length as something else than a number of positions."""

    def __init__(self, of: Callable[[int], Tensor | float]) -> None:
        super().__init__()
        self.of = of

    def forward(self, profile: Tensor, history: Tensor, item: Tensor) -> Tensor:
        return (profile.sum(1) + history.sum(1) * self.of(history.shape[1])) * item.sum(1)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda length: torch.arange(length**2).sum(), "has sizes 169, 121, 64 for histories of 13, 11, 8 positions"),
        (lambda length: torch.arange(length // 2).sum(), "no multiple of the length plus a number; pad the history"),
        (lambda length: 1 / min(length, 8), "'output' of histories of 1 positions is not the model's"),
        (lambda length: length**0.5, "differs between histories of 13, 11, 8 positions by more than sizes; pad"),
    ],
    ids=["square", "half", "minimum", "root"],
)
def test_what_else_follows_the_length_is_refused(of: Callable[[int], Tensor | float], message: str) -> None:
    with pytest.raises(UgsepError, match=message) as caught:
        divided(Other(of).double())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"histori": 1}, "no input 'histori', did you mean 'history'?"),
        ({"history": 1, "item": 1}, "have lengths {'history': 13, 'item': 2} in the example; give all the same"),
        ({"item": 1}, "the example's history has 2 positions; give at least 7, to compare lengths"),
    ],
)
def test_histories_that_cannot_be_compared(history: dict[str, int], message: str) -> None:
    model = Model(is_causal).double()
    with pytest.raises(UgsepError, match=re.escape(message)):
        split_for_any_length(model, example(5, LONGEST), user=["profile", "history"], item=["item"], history=history)
