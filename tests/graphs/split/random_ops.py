"""The ops of random networks: on sequences [B, T, WIDTH], from these to vectors [B, WIDTH], and on vectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, LONGEST = 8, 2, 12

INFINITE = float("-inf")


class Network(Protocol):
    """What ops take from a network: its values so far, its layers, and its choices."""

    pick: Any
    ops: list[str]
    sequences: list[Tensor]
    masks: dict[int, list[Tensor]]

    def layer(self, make: Callable[[], nn.Module]) -> nn.Module: ...
    def weight(self, *shape: int) -> Tensor: ...
    def linear(self, x: Tensor, out: int = ...) -> Tensor: ...
    def vector(self) -> Tensor: ...
    def sequence(self) -> Tensor: ...


Op = Callable[[Network, Tensor], Tensor]


def other(m: Network, x: Tensor) -> Tensor:
    """Return another sequence as long as this one, or this one."""
    return m.pick.choice([s for s in m.sequences if s.shape == x.shape] or [x])


def joined(m: Network, x: Tensor) -> Tensor:
    y = m.sequence()
    if x.shape[1] + y.shape[1] > LONGEST:
        return torch.cat([x[:, : LONGEST // 2], y[:, -LONGEST // 2 :]], 1)
    for a, b in itertools.product(m.masks[x.shape[1]], m.masks[y.shape[1]]):
        m.masks[x.shape[1] + y.shape[1]].append(torch.cat([a, b], 1))
        break
    return torch.cat([x, y], 1)


def with_vector(m: Network, x: Tensor) -> Tensor:
    if x.shape[1] == LONGEST:
        return x + m.vector()[:, None]
    v = m.vector()[:, None]
    return torch.cat([v, x] if m.pick.random() < 0.3 else [x, v], 1)


def causal(length: int, m: Network) -> Tensor:
    """Return a constant mask of what sees what: causal, causal by blocks, or a prefix that sees itself."""
    sees = torch.ones(length, length, dtype=torch.bool)
    kind = m.pick.randrange(4)
    if kind == 0:
        return sees.tril()
    if kind == 1:
        return sees.tril(m.pick.randint(-1, 1)) | torch.eye(length, dtype=torch.bool)
    first = m.pick.randint(1, length)
    sees[:first, first:] = False
    return sees if kind == 2 else sees & (sees.tril() | sees.triu(length - 1))


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


def attention(m: Network, x: Tensor) -> Tensor:
    """Self-attention with one of many masks, alone or with padding."""
    length, pick = x.shape[1], m.pick
    q, k, v = (heads(m.linear(x)) for _ in range(3))
    sees, there = causal(length, m), pick.choice([*m.masks[length], None])
    form = pick.choice(["none", "is_causal", "bool", "float", "fill", "where", "added", "factor", "later"])
    m.ops[-1] += f" {form}{'' if there is None else ' padded'}"
    if form == "is_causal":
        return folded(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    if form in ("none", "bool"):
        mask = None if form == "none" else sees
        if there is not None:
            padding = there[:, None, None, :]
            mask = padding.expand(-1, 1, length, -1) if mask is None else mask & padding
        return folded(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    scores = q @ k.transpose(-2, -1)
    low = pick.choice([INFINITE, -1e9, torch.finfo(torch.float64).min, -1e4])
    hidden = ~sees if there is None else ~(sees & there[:, None, None, :])
    if there is not None and low == INFINITE:
        hidden = hidden & ~torch.eye(length, dtype=torch.bool)  # a row that sees nothing is NaN
    if form == "float":
        zero = torch.zeros(length, length, dtype=torch.float64)
        if there is not None and low == INFINITE:
            mask = torch.where(hidden, low, 0.0).to(torch.float64)
        elif there is not None:
            mask = zero.masked_fill(~sees, low) + (1.0 - there.double())[:, None, None, :] * low
        else:
            mask = zero.masked_fill(~sees, low)
        return folded(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    if form == "fill":
        weights = scores.masked_fill(hidden, low).softmax(-1)
    elif form == "where":
        weights = F.softmax(torch.where(hidden, torch.tensor(low, dtype=torch.float64), scores), -1)
    elif form == "added":
        weights = (scores + torch.zeros(length, length, dtype=torch.float64).masked_fill(~sees, low)).softmax(-1)
    elif form == "factor":
        weights = F.silu(scores) / length * ~hidden
    else:
        weights = scores.softmax(-1) * sees
    return folded(weights @ v)


def folded(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def grouped(m: Network, x: Tensor) -> Tensor:
    """Two heads of queries share one of keys and values."""
    q = heads(m.linear(x))
    k, v = (m.linear(x, WIDTH // HEADS)[:, None] for _ in range(2))
    form = m.pick.randrange(3)
    if form == 0:
        mask = causal(x.shape[1], m)
        return folded(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True))
    if form == 1:
        k, v = (t.repeat_interleave(HEADS, 1) for t in (k, v))
    else:
        k, v = (t[:, :, None].expand(-1, -1, HEADS, -1, -1).reshape(q.shape) for t in (k, v))
    return folded(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def encoder(m: Network, x: Tensor) -> Tensor:
    length, first, form = x.shape[1], m.pick.random() < 0.5, m.pick.randrange(3)
    layer = m.layer(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True, norm_first=first))
    if form == 0:
        return layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(length).double(), is_causal=True)
    there = m.pick.choice([*m.masks[length], None])
    padding = None if there is None else ~there & (torch.arange(length) > 0)
    return layer(x, src_mask=~torch.ones(length, length, dtype=torch.bool).tril(), src_key_padding_mask=padding)


def multihead(m: Network, x: Tensor) -> Tensor:
    y, weights = m.sequence(), m.pick.random() < 0.5
    layer = m.layer(lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    return layer(x, y, y, need_weights=weights)[0]


def recurrent(m: Network, x: Tensor) -> Tensor:
    kind = m.pick.choice([nn.GRU, nn.LSTM])
    return m.layer(lambda: kind(WIDTH, WIDTH, batch_first=True))(x)[0]


def convolved(m: Network, x: Tensor) -> Tensor:
    return m.layer(lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1))(x.mT).mT / 5


def masked(m: Network, x: Tensor) -> Tensor:
    there = m.pick.choice([*m.masks[x.shape[1]], torch.arange(x.shape[1]) % 3 != 1])
    forms: list[Callable[[], Tensor]] = [
        lambda: x * there.unsqueeze(-1),
        lambda: x.masked_fill(~there.unsqueeze(-1), 0.5),
        lambda: torch.where(there.unsqueeze(-1), x, other(m, x)),
    ]
    return m.pick.choice(forms)()


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def mixed(m: Network, x: Tensor) -> Tensor:
    """A product over the positions, by a constant matrix."""
    weight = m.weight(x.shape[1], x.shape[1]) / x.shape[1]
    forms: list[Callable[[], Tensor]] = [
        lambda: weight @ x,
        lambda: F.linear(x.mT, weight).mT,
        lambda: torch.einsum("btd,st->bsd", x, weight),
    ]
    return m.pick.choice(forms)()


def picked(m: Network, x: Tensor) -> Tensor:
    order = torch.tensor([m.pick.randrange(x.shape[1]) for _ in range(m.pick.randint(1, LONGEST))])
    return m.pick.choice([lambda: x[:, order], lambda: x.index_select(1, order)])()


def sliced(m: Network, x: Tensor) -> Tensor:
    first = m.pick.randrange(x.shape[1])
    return x[:, first : m.pick.randint(first + 1, x.shape[1])]


def flat(m: Network, x: Tensor) -> Tensor:
    """Rows and positions as one axis through a network."""
    y = F.gelu(m.linear(x.reshape(-1, WIDTH), 12))
    return m.linear(F.layer_norm(y, (12,)) if m.pick.random() < 0.5 else y).view(-1, x.shape[1], WIDTH)


SEQUENCES: dict[str, Op] = {
    "joined": joined, "with vector": with_vector, "attention": attention, "grouped": grouped, "encoder": encoder,
    "multihead": multihead, "recurrent": recurrent, "convolved": convolved, "masked": masked, "mixed": mixed,
    "picked": picked, "slice": sliced, "flat": flat, "joined again": joined, "attention again": attention,
    "linear": lambda m, x: F.silu(m.linear(x)),
    "gated": lambda m, x: m.linear(x).sigmoid() * m.linear(x),
    "glu": lambda m, x: F.glu(m.linear(x, 2 * WIDTH), -1),
    "layer norm": lambda m, x: m.layer(lambda: nn.LayerNorm(WIDTH))(x),
    "rms norm": lambda m, x: F.rms_norm(x, (WIDTH,)),
    "residual": lambda m, x: (x + other(m, x)) / 2,
    "product": lambda m, x: torch.tanh(x * other(m, x)),
    "places": lambda m, x: x + m.weight(x.shape[1], WIDTH),
    "summed so far": lambda m, x: x.cumsum(1) / x.shape[1],
    "summed across": lambda m, x: x.cumsum(-1) / WIDTH,
    "sorted": lambda m, x: x.sort(1).values,
    "largest": lambda m, x: x.topk(m.pick.randint(1, x.shape[1]), 1).values,
    "flipped": lambda m, x: x.flip(1),
    "rolled": lambda m, x: x.roll(1, 1),
    "softmax over positions": lambda m, x: x.softmax(1) * x,
    "softmax across": lambda m, x: x.softmax(-1),
    "rotary": lambda m, x: x * m.weight(x.shape[1], WIDTH).cos() + turned(x) * m.weight(x.shape[1], WIDTH).sin(),
    "pairs": lambda m, x: (x @ x.mT / WIDTH) @ x / x.shape[1],
    "letters": lambda m, x: torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", x, other(m, x)) / WIDTH, x) / 4,
    "split": lambda m, x: torch.stack([a + b for a, b in zip(x.unbind(1), x.flip(1).unbind(1), strict=True)], 1) / 2,
    "per position": lambda m, x: (x.transpose(0, 1) @ m.weight(x.shape[1], WIDTH, WIDTH)).transpose(0, 1) / 3,
    "difference to a vector": lambda m, x: x - m.vector()[:, None],
}  # fmt: skip


def learned_query(m: Network, x: Tensor) -> Tensor:
    """Attention of a parameter over the positions."""
    form = m.pick.randrange(3)
    if form == 0:
        scores = torch.tanh(m.linear(x)) @ m.weight(WIDTH)
        return (scores.softmax(1).unsqueeze(-1) * x).sum(1)
    query = m.weight(2, WIDTH)
    if form == 1:
        return ((query @ x.mT).softmax(-1) @ x).mean(1)
    return F.scaled_dot_product_attention(query.expand(x.shape[0], -1, -1), m.linear(x), x).sum(1) / 2


def target_attention(m: Network, x: Tensor) -> Tensor:
    scores = (m.linear(m.vector())[:, None] * x).sum(-1)
    there = m.pick.choice([*m.masks[x.shape[1]], None])
    if there is not None:
        scores = scores.masked_fill(~there, -1e9)
    return (scores.softmax(1)[:, None] @ x).squeeze(1)


def masked_mean(m: Network, x: Tensor) -> Tensor:
    there = m.pick.choice([*m.masks[x.shape[1]], torch.arange(x.shape[1])[None] % 2 == 0]).double()
    return (x * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp_min(1.0)


def dots(m: Network, x: Tensor) -> Tensor:
    """Dots of all pairs of positions, as in DLRM."""
    length = x.shape[1]
    if length == 1:
        return x.squeeze(1)
    rows, columns = torch.triu_indices(length, length, 1)
    return m.linear(torch.bmm(x, x.mT)[:, rows, columns] / WIDTH)


POOLS: dict[str, Op] = {
    "learned query": learned_query, "target attention": target_attention, "masked mean": masked_mean, "dots": dots,
    "mean": lambda m, x: x.mean(1),
    "sum": lambda m, x: x.sum(1) / x.shape[1],
    "max": lambda m, x: x.amax(1),
    "last": lambda m, x: x[:, -1],
    "first": lambda m, x: x.select(1, 0),
    "log sum": lambda m, x: x.logsumexp(1),
    "flattened": lambda m, x: m.linear(x.flatten(1)),
    "flattened norm": lambda m, x: m.linear(F.layer_norm(x.flatten(1), (x.shape[1] * WIDTH,))),
    "second order": lambda m, x: torch.tanh((x.sum(1).square() - x.square().sum(1)) / (2 * x.shape[1])),
    "deviation": lambda m, x: (x.var(1, unbiased=False) + 0.1).sqrt(),
}  # fmt: skip

VECTORS: dict[str, Op] = {
    "two": lambda m, x: F.relu(m.linear(torch.cat([x, m.vector()], -1))),
    "three": lambda m, x: m.linear(
        m.layer(lambda: nn.LayerNorm(3 * WIDTH))(torch.cat([m.vector(), x, m.vector()], -1))
    ),
    "cross": lambda m, x: torch.tanh(x * m.linear(m.vector())) + x / 2,
    "gate": lambda m, x: x * m.linear(m.vector()).sigmoid(),
    "norm": lambda m, x: m.layer(lambda: nn.LayerNorm(WIDTH))(x),
    "batch norm": lambda m, x: m.layer(lambda: nn.BatchNorm1d(WIDTH))(x),
    "deep": lambda m, x: m.linear(F.gelu(m.linear(x, 24))),
    "dot": lambda m, x: torch.tanh((x * m.vector()).sum(-1, keepdim=True)) * x,
    "outer": lambda m, x: m.linear((x[:, :, None] * m.vector()[:, None]).flatten(1).tanh()),
    "leaky": lambda m, x: torch.where(x > 0, x, 0.1 * x),
    "experts": lambda m, x: (
        torch.stack([m.linear(x), m.linear(m.vector())], 1) * m.linear(x, 2).softmax(-1)[..., None]
    ).sum(1),
}  # fmt: skip
