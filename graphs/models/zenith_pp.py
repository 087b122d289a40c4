"""Zenith++ (arXiv 2601.21285): tokenwise multi-head attention and tokenwise sparse MoE, with UG-Sep (2602.10455)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from graphs.base.limits import MAX_SIZE, MAX_TOKENS, check_range
from graphs.layers.moe import SoftmaxRouter, SparseSwiGLU, SwiGLUExperts, check_experts
from graphs.layers.parameter_counts import (
    Count,
    Counts,
    attention,
    compensation,
    heads,
    norm,
    swiglu_experts,
    tokenwise_linear,
    tokenwise_swiglu,
)
from graphs.layers.tokenize import (
    FeatureEmbedding,
    PlannedTokenizer,
    TokenPlan,
    plan_prime_tokens,
    prime_token_counts,
)
from graphs.layers.tokenwise import Head, RMSNorm, TokenwiseLinear, TokenwiseSwiGLU
from graphs.layers.ugsep import Compensation, Tokens, each_side, separate, ug_attention
from graphs.models.ranking_model import ModelConfig, RankingModel, check_divides


@dataclass(frozen=True, kw_only=True)
class ZenithPPConfig(ModelConfig):
    """Sizes specific to Zenith++; the paper leaves norm type, L and the loss weights open.

    ``attention_heads`` divides D. ``hidden`` is the inner width of an expert, routed or shared. Each row uses
    ``active_experts`` of the ``experts`` routed ones; with 0 experts only the shared SwiGLU is left.

    Raises:
        UgsepError: a width not divisible by the heads, more active experts than experts, too few tokens for the ids.
    """

    attention_heads: int = 4
    hidden: int = 64
    experts: int = 4
    active_experts: int = 2
    balance_weight: float = 0.01
    z_weight: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, MAX_SIZE, self, "attention_heads", "hidden")
        check_range(0, MAX_TOKENS, self, "experts", "active_experts")
        check_divides("width", self.width, "attention_heads", self.attention_heads)
        check_experts(self.experts, self.active_experts, ("experts", "active_experts"))
        check_range(0, MAX_SIZE, self, "balance_weight", "z_weight")
        self.plans()

    def plans(self) -> tuple[tuple[TokenPlan, ...], tuple[TokenPlan, ...]]:
        """Return the plans of the user and item side's prime tokens."""
        user = plan_prime_tokens(self.features, "user", self.user_tokens)
        return user, plan_prime_tokens(self.features, "item", self.item_tokens)

    def counts(self) -> Counts:
        """Return parameters and FLOPs by formula."""
        n, m = self.sides()
        layer = Counts(
            self._layer_counts(n) + attention(n, n, self.width),
            self._layer_counts(m) + attention(m, n + m, self.width),
        )
        if n and self.compensation:
            layer += compensation(n, m, self.width)
        total = prime_token_counts(self.plans(), self.width, self.ug_sep)
        for _ in range(self.layers):
            total += layer
        return total + heads(len(self.tasks), self.width, self.tower)

    def _layer_counts(self, tokens: int) -> Count:
        if not tokens:
            return Count()
        total = tokenwise_linear(tokens, self.width, self.width, bias=False) * 3 + norm(self.width) * 2
        total += tokenwise_swiglu(tokens, self.width, self.hidden)
        if self.experts:
            total += swiglu_experts(tokens, self.width, self.hidden, self.experts, self.active_experts)
        return total


class TokenwiseAttention(nn.Module):
    """Multi-head attention with Q, K, V projections per feature token and head; no output projection [open].

    Tokens in and out. Under UG-Sep user queries see user keys only, so K and V of user tokens exist once per user.
    """

    def __init__(self, config: ZenithPPConfig) -> None:
        super().__init__()
        width = config.width
        self.query, self.key, self.value = (
            each_side(*config.sides(), lambda tokens: TokenwiseLinear(tokens, width, width, bias=False))
            for _ in range(3)
        )
        self.heads = config.attention_heads

    def forward(self, x: Tokens) -> Tokens:
        """Return the concatenated heads, without the residual."""
        return ug_attention(self.query(x), self.key(x), self.value(x), self.heads)


class ZenithPPLayer(nn.Module):
    """Token Fusion (attention) then Token Boost (MoE), post-norm; Tokens in, Tokens out."""

    def __init__(self, config: ZenithPPConfig) -> None:
        super().__init__()
        width, sides = config.width, config.sides()

        def boost(tokens: int) -> nn.Module:
            shared = TokenwiseSwiGLU(tokens, width, config.hidden)
            if not config.experts:
                return shared
            router = SoftmaxRouter(
                tokens, width, config.experts, config.active_experts, config.balance_weight, config.z_weight
            )
            return SparseSwiGLU(router, SwiGLUExperts(tokens, config.experts, width, config.hidden), shared)

        self.attention = TokenwiseAttention(config)
        self.attention_norm = each_side(*sides, lambda _: RMSNorm(width))
        self.compensation = Compensation(*sides, width) if sides[0] and config.compensation else None
        self.boost = each_side(*sides, boost)
        self.boost_norm = each_side(*sides, lambda _: RMSNorm(width))

    def forward(self, x: Tokens) -> Tokens:
        """Return the tokens after fusion and boost."""
        fused: Tokens = self.attention_norm(self.attention(x) + x)
        if self.compensation is not None:
            fused = self.compensation(fused)
        out: Tokens = self.boost_norm(self.boost(fused) + fused)
        return out


class ZenithPP(RankingModel):
    """Zenith++ with UG-Sep; ``forward(features) -> {task: logits [N]}``. See ``ZenithPPConfig``."""

    config_class = ZenithPPConfig

    def __init__(self, config: ZenithPPConfig) -> None:
        super().__init__(config)
        width = config.width
        self.embedding = FeatureEmbedding(config.features, width)
        user_plan, item_plan = config.plans()
        self.user_tokenizer = PlannedTokenizer(user_plan, width, width)
        self.item_tokenizer = PlannedTokenizer(item_plan, width, width)
        self.token_norm = each_side(*config.sides(), lambda _: RMSNorm(width))
        self.layers = nn.ModuleList(ZenithPPLayer(config) for _ in range(config.layers))
        self.heads = nn.ModuleDict({task: Head(width, config.tower) for task in config.tasks})
        self.ug_sep = config.ug_sep

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task."""
        vectors = self.embedding(features)
        x: Tokens = separate(self.user_tokenizer(vectors), self.item_tokenizer(vectors), self.ug_sep)
        x = self.token_norm(x)
        for layer in self.layers:
            x = layer(x)
        pooled = x.mean()  # [N, D]
        return {task: head(pooled) for task, head in self.heads.items()}


MODEL = ZenithPP
