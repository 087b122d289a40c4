"""After OneTrans (arXiv 2510.26104): one transformer over [history | user tokens | item tokens], with a UG mask.

Queries, keys, values and feed-forward networks have weights that the history shares, and ones of each other token
(mixed parameterization). OneTrans' pyramid, which drops the oldest queries layer by layer, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphs.base.limits import MAX_SIZE, check_range
from graphs.layers.parameter_counts import Count, Counts, attention, heads, linear, norm, tokenwise_linear
from graphs.layers.tokenize import FeatureEmbedding
from graphs.layers.tokenwise import Head, RMSNorm, TokenwiseLinear
from graphs.models.ranking_model import RankingModel, check_divides
from graphs.models.sequence import SequenceConfig, SequenceTokens, heads_first, heads_last

PADDING = -3e4  # added to the scores of padding; finite, since a row may see padding only, and within float16


@dataclass(frozen=True, kw_only=True)
class OneTransConfig(SequenceConfig):
    """Sizes specific to OneTrans. ``hidden`` is the inner width of the feed-forward networks.

    ``mask``: ``ug`` lets user positions see all user positions, and item tokens everything, so that the user's run
    once per request (UG-Sep, 2602.10455); ``causal``, the paper's, lets every token see itself and those before it;
    ``full`` hides nothing, so that nothing is reused.

    Raises:
        UgsepError: a width not divisible by the heads, and the errors of ``SequenceConfig``.
    """

    mask: Literal["ug", "causal", "full"] = "ug"
    attention_heads: int = 4
    hidden: int = 256
    item_tokens: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, MAX_SIZE, self, "attention_heads", "hidden")
        check_divides("width", self.width, "attention_heads", self.attention_heads)

    def sides(self) -> tuple[int, int]:
        """Return (user, item) token counts; user is 0 without a mask."""
        user, item = self.positions()
        return (0, user + item) if self.mask == "full" else (user, item)

    def pieces(self) -> tuple[int, int, int]:
        """Return the number of history, user and item tokens."""
        user, item = self.positions()
        past = sum(f.width for f in self.histories())
        return past, user - past, item

    def counts(self) -> Counts:
        """Return parameters and FLOPs by formula; of user positions, the last layer needs only keys and values."""
        width, hidden, (user, item) = self.width, self.hidden, self.positions()
        past, context, _ = self.pieces()

        def mixed(inputs: int, outputs: int) -> Counts:
            shared = linear(inputs, outputs, rows=past)
            return Counts(
                shared + tokenwise_linear(context, inputs, outputs), tokenwise_linear(item, inputs, outputs)
            )

        joint = mixed(width, 3 * width)
        rest = mixed(width, width) + mixed(width, hidden) + mixed(hidden, width)
        rest += Counts(attention(user, user, width) + norm(width) * 2, attention(item, user + item, width))
        total = self.token_counts() + heads(len(self.tasks), width, self.tower) + Counts(item=norm(width))
        for _ in range(self.layers):
            total += joint + rest
        if self.mask != "full":
            return total + Counts(Count(flops=-rest.user.flops))
        tokens = self.token_counts()
        unseen = attention(user, item, width).flops * self.layers  # of user positions to the item's
        moved = Count(flops=total.user.flops - tokens.user.flops)
        return Counts(Count(total.user.parameters, tokens.user.flops), total.item + moved + Count(flops=unseen))


class MixedLinear(nn.Module):
    """A linear layer of [N, T, K] whose weight the history shares; every user and item token has its own."""

    def __init__(self, pieces: tuple[int, int, int], inputs: int, outputs: int) -> None:
        super().__init__()
        self.pieces = pieces
        _, user, item = pieces
        self.shared = nn.Linear(inputs, outputs)
        self.user = TokenwiseLinear(user, inputs, outputs) if user else None
        self.item = TokenwiseLinear(item, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, M]."""
        history, user, item = x.split_with_sizes(self.pieces, 1)
        parts = [self.shared(history)]
        if self.user is not None:
            parts.append(self.user(user.transpose(0, 1)).transpose(0, 1))
        return torch.cat([*parts, self.item(item.transpose(0, 1)).transpose(0, 1)], 1)


class OneTransLayer(nn.Module):
    """Pre-norm: masked attention, then a feed-forward network, each mixed in its parameters and with a residual."""

    def __init__(self, config: OneTransConfig) -> None:
        super().__init__()
        width, pieces = config.width, config.pieces()
        self.heads = config.attention_heads
        self.attention_norm, self.network_norm = RMSNorm(width), RMSNorm(width)
        self.joint = MixedLinear(pieces, width, 3 * width)
        self.out = MixedLinear(pieces, width, width)
        self.up = MixedLinear(pieces, width, config.hidden)
        self.down = MixedLinear(pieces, config.hidden, width)

    def forward(self, x: Tensor, padding: Tensor, hidden: Tensor | None) -> Tensor:
        """Return the next [N, T, D]; scores add ``padding`` [N, 1, T] and leave out ``hidden`` [T, T]."""
        joint = self.joint(self.attention_norm(x)).split_with_sizes([x.shape[-1]] * 3, -1)
        q, k, v = (heads_first(t, self.heads) for t in joint)  # [H, N, T, D / H]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + padding  # [H, N, T, T]
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        x = x + self.out(heads_last(scores.softmax(-1) @ v))
        y: Tensor = self.down(functional.gelu(self.up(self.network_norm(x))))
        return x + y


class OneTrans(RankingModel):
    """OneTrans; ``forward(features) -> {task: logits [N]}``, of the mean item token. See ``OneTransConfig``.

    Candidates are scored independently: each sees the history, the user tokens and its own tokens.
    """

    config_class = OneTransConfig

    def __init__(self, config: OneTransConfig) -> None:
        super().__init__(config)
        self.embedding = FeatureEmbedding(config.features, config.width)
        self.tokens = SequenceTokens(config, context_first=False)
        self.layers = nn.ModuleList(OneTransLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.heads = nn.ModuleDict({task: Head(config.width, config.tower) for task in config.tasks})
        self.mask = config.mask
        self.user = config.positions()[0]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task."""
        x, there = self.tokens(features, self.embedding)
        padding = ((~there).to(x.dtype) * PADDING).unsqueeze(1)  # [N, 1, T]
        hidden = self.hidden(x.shape[1])
        for layer in self.layers:
            x = layer(x, padding, hidden)
        pooled = self.norm(x[:, self.user :]).mean(1)  # [N, D]
        return {task: head(pooled) for task, head in self.heads.items()}

    def hidden(self, positions: int) -> Tensor | None:
        """Return which positions [T, T] a query does not see, None if it sees all."""
        if self.mask == "full":
            return None
        keys = torch.arange(positions)
        queries = keys.unsqueeze(1)
        return keys > queries if self.mask == "causal" else (queries < self.user) & (keys >= self.user)


MODEL = OneTrans
