"""HSTU (arXiv 2402.17152): pointwise attention over [context | history | candidate] with a lower-triangular mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphs.base.limits import MAX_SIZE, check_range
from graphs.layers.parameter_counts import Count, Counts, attention, heads, linear, norm
from graphs.layers.tokenize import FeatureEmbedding
from graphs.layers.tokenwise import Head
from graphs.models.ranking_model import RankingModel, check_divides
from graphs.models.sequence import SequenceConfig, SequenceTokens, heads_first, heads_last


@dataclass(frozen=True, kw_only=True)
class HSTUConfig(SequenceConfig):
    """Sizes specific to HSTU; ``layers`` blocks of ``attention_heads`` heads, which divide the width.

    Raises:
        UgsepError: a width not divisible by the heads, and the errors of ``SequenceConfig``.
    """

    attention_heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, MAX_SIZE, self, "attention_heads")
        check_divides("width", self.width, "attention_heads", self.attention_heads)

    def counts(self) -> Counts:
        """Return parameters and FLOPs by formula; of user positions, the last layer needs only keys and values."""
        width, (user, item) = self.width, self.positions()
        own = linear(width, 4 * width, rows=user)
        rest = linear(width, width, rows=user) + attention(user, user, width)
        rest += norm(width, bias=True) * 2 + Count(self.attention_heads * (user + item))
        candidate = linear(width, 4 * width, rows=item).again() + linear(width, width, rows=item).again()
        layer = Counts(own + rest, candidate + attention(item, user + item, width))
        total = self.token_counts() + Counts(item=norm(width, bias=True)) + heads(len(self.tasks), width, self.tower)
        for _ in range(self.layers):
            total += layer
        return total + Counts(Count(flops=-rest.flops))


class HSTULayer(nn.Module):
    """``f2(LN(A V) * U) + x`` with ``A = SiLU(Q K^T + bias) / n`` and ``U, V, Q, K = SiLU(f1(LN(x)))``.

    The bias is a parameter per head and distance; A is multiplied by a lower-triangular mask, after SiLU: no finite
    bias hides for certain. Padding is hidden by values V of 0, so that no [.., n, n] mask depends on the data.
    """

    def __init__(self, width: int, count: int, positions: int) -> None:
        super().__init__()
        self.heads = count
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint = nn.Linear(width, 4 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.empty(count, positions))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the bias with a small standard deviation, as the embeddings."""
        nn.init.normal_(self.bias, std=0.02)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        """Return the next [N, T, D]; ``share`` [N, T, 1] is 1 / T, or 0 for padding."""
        gate, values, queries, keys = functional.silu(self.joint(self.before(x))).split_with_sizes(
            [x.shape[-1]] * 4, -1
        )
        v, q, k = (heads_first(t, self.heads) for t in (values * share, queries, keys))  # [H, N, T, D / H]
        place = torch.arange(x.shape[1])
        distance = place.unsqueeze(1) - place  # [T, T], of a query to a key
        bias = self.bias[:, distance.clamp_min(0)].unsqueeze(1)  # [H, 1, T, T]
        past = (distance >= 0).to(x.dtype)  # [T, T]
        seen = (functional.silu(q @ k.transpose(2, 3) + bias) * past) @ v  # [H, N, T, D / H]
        added: Tensor = self.out(self.between(heads_last(seen)) * gate)
        return x + added


class HSTU(RankingModel):
    """HSTU; ``forward(features) -> {task: logits [N]}``, of the candidate's last token. See ``HSTUConfig``.

    Candidates are scored independently: each sees the context, the history and itself.
    """

    config_class = HSTUConfig

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__(config)
        user, item = config.positions()
        self.embedding = FeatureEmbedding(config.features, config.width)
        self.tokens = SequenceTokens(config)
        self.layers = nn.ModuleList(
            HSTULayer(config.width, config.attention_heads, user + item) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.ModuleDict({task: Head(config.width, config.tower) for task in config.tasks})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task."""
        x, there = self.tokens(features, self.embedding)
        share = there.to(x.dtype).unsqueeze(-1) / x.shape[1]
        for layer in self.layers:
            x = layer(x, share)
        last = self.norm(x[:, -1])  # [N, D]
        return {task: head(last) for task, head in self.heads.items()}


MODEL = HSTU
