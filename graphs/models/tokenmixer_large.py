"""TokenMixer-Large (arXiv 2602.06563): mix, SwiGLU, revert, SwiGLU, with UG-Sep (2602.10455)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from graphs.base.errors import UgsepError
from graphs.base.features import Feature, of_side
from graphs.base.limits import MAX_LAYERS, MAX_SIZE, MAX_TOKENS, check_range
from graphs.base.names import SIDES
from graphs.layers.moe import SoftmaxRouter, SparseSwiGLU, SwiGLUExperts, check_experts
from graphs.layers.parameter_counts import Count, Counts, compensation, heads, norm, swiglu_experts, tokenwise_swiglu
from graphs.layers.tokenize import (
    FeatureEmbedding,
    PlannedTokenizer,
    TokenPlan,
    group_network,
    group_network_counts,
    plan_counts,
    plan_group_tokens,
)
from graphs.layers.tokenwise import Head, RMSNorm, TokenwiseSwiGLU
from graphs.layers.ugsep import Compensation, Tokens, each_side, masked_mix, separate
from graphs.models.ranking_model import ModelConfig, RankingModel, check_divides

DOWN_GAIN = 0.01  # 2602.06563: the last projection starts small, so a block starts near the identity


@dataclass(frozen=True, kw_only=True)
class TokenMixerLargeConfig(ModelConfig):
    """Sizes specific to TokenMixer-Large; the paper leaves T, D and L open.

    ``hidden`` is the inner width of both SwiGLUs. ``mixed_user_rows`` (c_u) and ``mixed_item_rows`` (c_g) are the H
    rows of the mixing; 0 takes n and m. With ``global_token`` "item", the last item token is the global token of all
    features; with "split", the last token of each side is the global token of that side's features. ``read_out`` is
    the mean over all tokens or over the global ones. Every ``residual_every`` layers, but not after the last, the
    block output that many layers earlier (at first the tokens) is added; 0 disables this. ``auxiliary_weight`` > 0
    also trains logits of the middle layers.

    ``experts`` > 0 cuts both SwiGLUs into that many slices, of which a row uses ``active_experts``: one shared, the
    others routed; the routed sum is scaled by experts / active_experts (1 / sparsity).

    Raises:
        UgsepError: a width not divisible by H, more active experts than experts, ``hidden`` not divisible by
            ``experts``, or a side whose only token is a global one.
    """

    hidden: int = 256
    embedding_width: int = 16
    mixed_user_rows: int = 0
    mixed_item_rows: int = 0
    global_token: Literal["item", "split"] = "item"
    read_out: Literal["mean", "global"] = "mean"
    residual_every: int = 2
    auxiliary_weight: float = 0.0
    experts: int = 0
    active_experts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, MAX_SIZE, self, "hidden", "embedding_width")
        check_range(0, MAX_TOKENS, self, "mixed_user_rows", "mixed_item_rows", "experts", "active_experts")
        check_range(0, MAX_LAYERS, self, "residual_every")
        check_range(0, MAX_SIZE, self, "auxiliary_weight")
        for name, known in (("global_token", ("item", "split")), ("read_out", ("mean", "global"))):
            if getattr(self, name) not in known:
                raise UgsepError(f"{name} is '{getattr(self, name)}'; give '{known[0]}' or '{known[1]}'")
        check_experts(self.experts, self.active_experts, ("experts", "active_experts"))
        if self.experts:
            if self.active_experts < 2:
                raise UgsepError("active_experts is 1, but one is the shared expert; active_experts = 2 works")
            check_divides("hidden", self.hidden, "experts", self.experts)
        for side, count in zip(SIDES, self.group_tokens(), strict=True):
            if count < 1:
                raise UgsepError(f"{side}_tokens is 1, which the global token takes; {side}_tokens = 2 works")
        rows = sum(self.rows())
        check_divides("width", self.width, "mixed rows (mixed_user_rows + mixed_item_rows, or all tokens)", rows)

    def group_tokens(self) -> tuple[int, int]:
        """Return the numbers of user and item tokens that are semantic groups, not global."""
        return self.user_tokens - (self.global_token == "split"), self.item_tokens - 1

    def rows(self) -> tuple[int, int]:
        """Return (c_u, c_g), the rows of the mixing; c_u is 0 when unmasked."""
        user, item = self.mixed_user_rows or self.user_tokens, self.mixed_item_rows or self.item_tokens
        return (user, item) if self.ug_sep else (0, user + item)

    def plans(self) -> tuple[tuple[TokenPlan, ...], tuple[TokenPlan, ...]]:
        """Return the plans of the user and item side's semantic group tokens."""
        user, item = self.group_tokens()
        return plan_group_tokens(self.features, "user", user), plan_group_tokens(self.features, "item", item)

    def global_features(self) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
        """Return the features of the user and item side's global token; the user's are empty if it has none."""
        if self.global_token == "split":
            return of_side(self.features, "user"), of_side(self.features, "item")
        return (), self.features

    def adds_earlier(self, layer: int) -> bool:
        """Whether the inter-layer residual is added after ``layer``."""
        return self.residual_every > 0 and (layer + 1) % self.residual_every == 0 and layer < self.layers - 1

    def counts(self) -> Counts:
        """Return parameters and FLOPs by formula."""
        user, item = (plan_counts(plan, self.embedding_width, self.width) for plan in self.plans())
        total = Counts(user, item) + heads(len(self.tasks), self.width, self.tower)
        total += Counts(
            *(group_network_counts(read, self.embedding_width, self.width) for read in self.global_features())
        )
        (n, m), (c_u, c_g) = self.sides(), self.rows()
        row_width = self.tokens * self.width // (c_u + c_g)
        layer = Counts(
            self._block_counts(c_u, row_width) + self._block_counts(n, self.width),
            self._block_counts(c_g, row_width) + self._block_counts(m, self.width),
        )
        if n and self.compensation:
            layer += compensation(n, m, self.width)
        for _ in range(self.layers):
            total += layer
        return total

    def _block_counts(self, tokens: int, width: int) -> Count:
        if not tokens:
            return Count()
        if not self.experts:
            return norm(width) + tokenwise_swiglu(tokens, width, self.hidden)
        hidden = self.hidden // self.experts
        routed = swiglu_experts(tokens, width, hidden, self.experts - 1, self.active_experts - 1)
        return norm(width) + tokenwise_swiglu(tokens, width, hidden) + routed


class PreNormSwiGLU(nn.Module):
    """``x -> pSwiGLU(RMSNorm(x))`` on one side, dense or sparse; [t, N, W] -> [t, N, W]."""

    def __init__(self, config: TokenMixerLargeConfig, tokens: int, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.network: nn.Module
        if config.experts:
            hidden, routed = config.hidden // config.experts, config.experts - 1
            self.network = SparseSwiGLU(
                SoftmaxRouter(tokens, width, routed, config.active_experts - 1),
                SwiGLUExperts(tokens, routed, width, hidden, DOWN_GAIN),
                TokenwiseSwiGLU(tokens, width, hidden, DOWN_GAIN),
                scale=config.experts / config.active_experts,
            )
        else:
            self.network = TokenwiseSwiGLU(tokens, width, config.hidden, DOWN_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transform, without the residual."""
        y: Tensor = self.network(self.norm(x))
        return y


class TokenMixerLargeLayer(nn.Module):
    """Mix, network, revert, network; pre-norm; the last residual is the layer's input. Tokens in and out."""

    def __init__(self, config: TokenMixerLargeConfig) -> None:
        super().__init__()
        tokens, rows = config.sides(), config.rows()
        row_width = config.tokens * config.width // sum(rows)
        self.tokens, self.rows = tokens, rows
        self.mixing = each_side(*rows, lambda t: PreNormSwiGLU(config, t, row_width))
        self.compensation = Compensation(*tokens, config.width) if tokens[0] and config.compensation else None
        self.reverting = each_side(*tokens, lambda t: PreNormSwiGLU(config, t, config.width))

    def forward(self, x: Tokens) -> Tokens:
        """Return the tokens [n, N, D], [m, N, D] after both networks."""
        mixed = masked_mix(x, *self.rows)
        mixed = self.mixing(mixed) + mixed
        # Masking only the mixing is not enough: reverting would give user tokens their slices of item rows.
        reverted = masked_mix(mixed, *self.tokens)
        out: Tokens = self.reverting(reverted) + x
        # Added to the residual stream: before the network it would mix item values into the user columns of the
        # item rows, whose products can otherwise be computed once per request.
        return out if self.compensation is None else self.compensation(out)


class TokenMixerLarge(RankingModel):
    """TokenMixer-Large with UG-Sep; ``forward(features) -> {task: logits [N]}``. See ``TokenMixerLargeConfig``."""

    config_class = TokenMixerLargeConfig
    config: TokenMixerLargeConfig

    def __init__(self, config: TokenMixerLargeConfig) -> None:
        super().__init__(config)
        embedding, width = config.embedding_width, config.width
        self.embedding = FeatureEmbedding(config.features, embedding)
        user_plan, item_plan = config.plans()
        self.user_tokenizer = PlannedTokenizer(user_plan, embedding, width)
        self.item_tokenizer = PlannedTokenizer(item_plan, embedding, width)
        user, item = config.global_features()
        self.user_global_token = group_network(user, embedding, width) if user else None
        self.item_global_token = group_network(item, embedding, width)
        self.layers = nn.ModuleList(TokenMixerLargeLayer(config) for _ in range(config.layers))
        self.heads = self._make_heads()
        middle = config.layers - 1 if config.auxiliary_weight > 0 else 0
        self.auxiliary_heads = nn.ModuleList(self._make_heads() for _ in range(middle))
        self.middle_logits: list[dict[str, Tensor]] = []

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task."""
        x = self._tokenize(self.embedding(features))
        earlier = x
        middle: list[dict[str, Tensor]] = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if self.config.adds_earlier(index):
                x = x + earlier
                earlier = x
            if self.training and index < len(self.auxiliary_heads):
                middle.append(self._read_out(x, self.auxiliary_heads[index]))
        if self.training:
            self.middle_logits = middle
        return self._read_out(x, self.heads)

    def auxiliary_loss(self, labels: dict[str, Tensor] | None = None) -> Tensor:
        """Return the routers' loss plus ``auxiliary_weight`` times the mean cross-entropy of the middle logits.

        Raises:
            UgsepError: middle logits without labels.
        """
        total = super().auxiliary_loss(labels)
        if not self.training or not self.middle_logits:
            return total
        if labels is None:
            raise UgsepError("auxiliary_weight needs the labels; call auxiliary_loss(labels) or set it to 0")
        losses = [
            binary_cross_entropy_with_logits(logits[task], label)
            for logits in self.middle_logits
            for task, label in labels.items()
        ]
        return total + self.config.auxiliary_weight * torch.stack(losses).mean()

    def _make_heads(self) -> nn.ModuleDict:
        return nn.ModuleDict({t: Head(self.config.width, self.config.tower) for t in self.config.tasks})

    def _tokenize(self, vectors: dict[str, Tensor]) -> Tokens:
        def joined(features: tuple[Feature, ...]) -> Tensor:
            return torch.cat([vectors[f.name] for f in features], -1)

        of_user, of_item = self.config.global_features()
        user, item = self.user_tokenizer(vectors), self.item_tokenizer(vectors)
        if self.user_global_token is not None:
            user = torch.cat([user, self.user_global_token(joined(of_user)).unsqueeze(0)])
        item = torch.cat([item, self.item_global_token(joined(of_item)).unsqueeze(0)])
        return separate(user, item, self.config.ug_sep)

    def _read_out(self, x: Tokens, towers: nn.Module) -> dict[str, Tensor]:
        pooled = x.mean() if self.config.read_out == "mean" else self._global(x)  # [N, D]
        return {task: head(pooled) for task, head in towers.named_children()}

    def _global(self, x: Tokens) -> Tensor:
        if self.config.global_token == "item":
            return x.item[-1]
        user = x.item[self.config.user_tokens - 1] if x.user is None else x.user[-1]
        return (user + x.item[-1]) / 2


MODEL = TokenMixerLarge
