"""What sequence models share: the tokens [context | history | candidate], and the settings of these."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError, nearest
from graphs.base.features import Feature
from graphs.base.limits import MAX_TOKENS
from graphs.base.names import Side
from graphs.layers.parameter_counts import Count, Counts
from graphs.layers.tokenize import FeatureEmbedding, PlannedTokenizer, TokenPlan, plan_counts, plan_group_tokens
from graphs.layers.tokenwise import cut_last
from graphs.models.ranking_model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(ModelConfig):
    """Settings of models over [context | history | candidate].

    ``history`` names the user's sequences, by default all, joined in this order: each position is one token; id 0 is
    padding. ``user_tokens`` context tokens are made of the user's other features, if there are any, and
    ``item_tokens`` tokens of the candidate's features; the last one is scored.

    Raises:
        UgsepError: no history, a history that is no sequence of the user, too many tokens, a compensation, or the
            errors of ``ModelConfig``.
    """

    history: tuple[str, ...] = ()
    item_tokens: int = 1
    compensation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ug_sep:
            raise UgsepError(
                "ug_sep is false, but in a sequence model the attention's mask separates; set ug_sep: true"
            )
        if self.compensation:
            raise UgsepError("compensation is for models that mix tokens without attention; set compensation: false")
        found = [f.name for f in self.features if f.side == "user" and f.kind == "sequence"]
        for name in self.history:
            if name not in found:
                raise UgsepError(
                    f"history names '{name}', but the user's sequences are {found}{nearest(name, found)}"
                )
        if not found:
            raise UgsepError("features has no sequence of side 'user'; a sequence model needs a history")
        if sum(self.positions()) > MAX_TOKENS:
            raise UgsepError(
                f"context, history and candidate have {sum(self.positions())} tokens, above {MAX_TOKENS}"
            )

    def histories(self) -> tuple[Feature, ...]:
        """Return the sequences that make up the history, in order."""
        by_name = {f.name: f for f in self.features}
        named = tuple(by_name[name] for name in self.history)
        return named or tuple(f for f in self.features if f.side == "user" and f.kind == "sequence")

    def plans(self, side: Side) -> tuple[TokenPlan, ...]:
        """Return the plans of the context tokens (user) or the candidate's (item)."""
        taken = self.histories() if side == "user" else ()
        left = tuple(f for f in self.features if f.side == side and f not in taken)
        count = self.user_tokens if side == "user" else self.item_tokens
        return plan_group_tokens(left, side, count) if left else ()

    def positions(self) -> tuple[int, int]:
        """Return the number of tokens of the user (context and history) and of the candidate."""
        context = sum(p.tokens for p in self.plans("user"))
        return context + sum(f.width for f in self.histories()), self.item_tokens

    def sides(self) -> tuple[int, int]:
        """Return (user, item) token counts."""
        return self.positions()

    def token_counts(self) -> Counts:
        """Return the cost of ``SequenceTokens`` without embedding tables."""
        user, item = (plan_counts(self.plans(side), self.width, self.width) for side in ("user", "item"))
        kinds = Count((sum(self.positions()) + len(self.histories())) * self.width)
        return Counts(user + kinds, item)


class SequenceTokens(nn.Module):
    """Tokens [N, T, D] of [context | history | candidate], and which are there, bool [N, T]: all but padding.

    ``context_first=False`` puts the history before the context.
    A token of the history is the embedding of its id plus one of its sequence; every token has an embedding of its
    position added.
    """

    def __init__(self, config: SequenceConfig, context_first: bool = True) -> None:
        super().__init__()
        self.context_first = context_first
        width = config.width
        self.histories = config.histories()
        plans = {side: config.plans(side) for side in ("user", "item")}
        self.context = PlannedTokenizer(plans["user"], width, width) if plans["user"] else None
        self.candidate = PlannedTokenizer(plans["item"], width, width)
        self.kinds = nn.Parameter(torch.empty(len(self.histories), width))
        self.places = nn.Parameter(torch.empty(sum(config.positions()), width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the embedding tables."""
        nn.init.normal_(self.kinds, std=0.05)
        nn.init.normal_(self.places, std=0.05)

    def forward(self, features: dict[str, Tensor], embedding: FeatureEmbedding) -> tuple[Tensor, Tensor]:
        """Return tokens and presence."""
        vectors = embedding(features, but={f.name for f in self.histories})
        past = [
            (embedding.tables[f.table_name](features[f.name]) + kind, features[f.name] != 0)
            for f, kind in zip(self.histories, self.kinds, strict=True)
        ]
        context = [_present(self.context(vectors))] if self.context is not None else []
        pieces = [*(context + past if self.context_first else past + context), _present(self.candidate(vectors))]
        tokens, there = zip(*pieces, strict=True)
        return torch.cat(tokens, 1) + self.places, torch.cat(there, 1)


def heads_first(x: Tensor, heads: int) -> Tensor:
    """Return [N, T, D] as [H, N, T, D / H].

    Rows next to positions let the candidates of one user fold into the rows of one GEMM per head, as in M-FALCON.
    """
    return cut_last(x, heads).permute(2, 0, 1, 3)


def heads_last(x: Tensor) -> Tensor:
    """Return [H, N, T, D / H] as [N, T, D]."""
    return x.permute(1, 2, 0, 3).flatten(2)


def _present(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return token-major tokens [T, N, D] as [N, T, D], and that all are there."""
    rows = tokens.transpose(0, 1)
    return rows, torch.ones_like(rows[..., 0], dtype=torch.bool)
