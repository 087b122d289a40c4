"""Zenith (arXiv 2601.21285): Retokenized Self-Attention and tokenwise SwiGLU, with UG-Sep (2602.10455)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.base.limits import MAX_SIZE, MAX_TOKENS, check_range
from graphs.layers.parameter_counts import Count, Counts, compensation, heads, linear, norm, product, tokenwise_swiglu
from graphs.layers.tokenize import (
    FeatureEmbedding,
    PlannedTokenizer,
    TokenPlan,
    plan_prime_tokens,
    prime_token_counts,
)
from graphs.layers.tokenwise import Head, RMSNorm, TokenwiseSwiGLU
from graphs.layers.ugsep import Compensation, Tokens, each_side, separate
from graphs.models.ranking_model import ModelConfig, RankingModel


@dataclass(frozen=True, kw_only=True)
class ZenithConfig(ModelConfig):
    """Sizes specific to Zenith; the paper leaves the MLP's form, the norm's type and L open.

    ``fusion_width`` is k: a layer's T tokens become T*k/width tokens (retokenization); 0 means k = width, which
    keeps T. ``hidden`` is the inner width of the tokenwise SwiGLU.

    Raises:
        UgsepError: a size below 1, T*k not divisible by the width, or a side left without tokens.
    """

    fusion_width: int = 0
    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, MAX_SIZE, self, "hidden")
        check_range(0, MAX_SIZE, self, "fusion_width")
        self.plans()
        self.token_counts()

    def plans(self) -> tuple[tuple[TokenPlan, ...], tuple[TokenPlan, ...]]:
        """Return the plans of the user and item side's prime tokens."""
        user = plan_prime_tokens(self.features, "user", self.user_tokens)
        return user, plan_prime_tokens(self.features, "item", self.item_tokens)

    def counts(self) -> Counts:
        """Return parameters and FLOPs by formula."""
        total = prime_token_counts(self.plans(), self.width, self.ug_sep)
        counts = self.token_counts()
        for (n, m), (user, item) in pairwise(counts):
            total += self._fusion_counts(n, m)
            if n and self.compensation:
                total += compensation(user, item, self.width)
            total += Counts(
                norm(self.width) * (2 if n else 0) + tokenwise_swiglu(user, self.width, self.hidden),
                norm(self.width) * 2 + tokenwise_swiglu(item, self.width, self.hidden),
            )
        return total + heads(len(self.tasks), self.width, self.tower)

    def _fusion_counts(self, n: int, m: int) -> Counts:
        def per_row(rows: int) -> Count:
            mlp = linear(self.width, self.width, rows=rows) + linear(self.width, self.k, rows=rows)
            return mlp + linear(self.width, self.k, bias=False, rows=rows)

        def over(queries: int, keys: int) -> Count:
            return product(queries, self.width, keys) + product(queries, keys, self.k)

        return Counts(per_row(n).again() + over(n, n), per_row(m) + over(m, n + m))

    @property
    def k(self) -> int:
        """Width of the fused rows before they are recut."""
        return self.fusion_width or self.width

    def token_counts(self) -> list[tuple[int, int]]:
        """Return (user, item) token counts before layer 0 and after each layer.

        A recut token that straddles user and item values is an item token.
        """
        user, item = self.sides()
        counts = [(user, item)]
        for layer in range(self.layers):
            total = (user + item) * self.k
            if total % self.width:
                raise UgsepError(
                    f"layer {layer}: {user + item} tokens * fusion_width {self.k} = {total} is not divisible by "
                    f"width {self.width}; fusion_width = {self.width} works"
                )
            if total // self.width > MAX_TOKENS:
                raise UgsepError(
                    f"layer {layer}: fusion_width {self.k} makes {total // self.width} tokens, above {MAX_TOKENS}; "
                    f"fusion_width = {self.width} works"
                )
            after = user * self.k // self.width
            user, item = after, total // self.width - after
            if item < 1 or (self.ug_sep and user < 1):
                raise UgsepError(
                    f"layer {layer}: fusion_width {self.k} leaves {user} user and {item} item tokens; "
                    f"fusion_width = {self.width} works"
                )
            counts.append((user, item))
        return counts


def recut(user: Tensor | None, item: Tensor, width: int) -> Tokens:
    """Recut row-major tokens [N, n, k], [N, m, k] into token-major tokens of ``width``.

    If the user values do not fill the last token, that token is an item token.
    """
    rows = item.shape[0]
    if user is None:
        return Tokens(None, item.reshape(rows, -1, width).transpose(0, 1))
    flat = user.reshape(rows, -1)  # [N, n*k]
    whole = flat.shape[1] // width * width
    if whole == flat.shape[1]:
        rest = item.reshape(rows, -1)  # [N, m*k]
    else:
        rest = torch.cat([flat[:, whole:], item.reshape(rows, -1)], 1)  # [N, straddle + m*k]
    first = flat[:, :whole].reshape(rows, -1, width)  # [N, n', D]
    return Tokens(first.transpose(0, 1), rest.reshape(rows, -1, width).transpose(0, 1))


class RetokenizedSelfAttention(nn.Module):
    """RSA: O = (X Xᵀ) X W_R, no softmax and no scale, recut into tokens; (X Xᵀ)[user, item] = 0 under UG-Sep.

    Token-major in and out: [n, N, D], [m, N, D] -> [n', N, D], [m', N, D]. The residual is the shared MLP of the
    input tokens, recut the same way; the caller's norm completes Norm(O + MLP(X)).
    """

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.width = width
        self.retoken = nn.Linear(width, k, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, k))

    def forward(self, x: Tokens) -> Tokens:
        """Return the fused tokens before the norm."""
        item = x.item.transpose(0, 1)  # [N, m, D]
        fused = self.mlp(item) + (item @ item.transpose(1, 2)) @ self.retoken(item)  # [N, m, k]
        if x.user is None:
            return recut(None, fused, self.width)
        user = x.user.transpose(0, 1)  # [N, n, D]
        values = self.retoken(user)  # [N, n, k], once per user, like X_U
        fused = fused + (item @ user.transpose(1, 2)) @ values  # [N, m, k]
        own = self.mlp(user) + (user @ user.transpose(1, 2)) @ values  # [N, n, k]
        return recut(own, fused, self.width)


class ZenithLayer(nn.Module):
    """Token Fusion then Token Boost, post-norm; Tokens in, Tokens out (see ``token_counts``)."""

    def __init__(self, config: ZenithConfig, user: int, item: int) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.fusion = RetokenizedSelfAttention(width, config.k)
        self.fusion_norm = each_side(user, item, lambda _: RMSNorm(width))
        self.compensation = Compensation(user, item, width) if user and config.compensation else None
        self.boost = each_side(user, item, lambda tokens: TokenwiseSwiGLU(tokens, width, hidden))
        self.boost_norm = each_side(user, item, lambda _: RMSNorm(width))

    def forward(self, x: Tokens) -> Tokens:
        """Return the tokens after fusion and boost."""
        fused: Tokens = self.fusion_norm(self.fusion(x))
        if self.compensation is not None:
            fused = self.compensation(fused)
        boosted: Tokens = self.boost(fused)
        out: Tokens = self.boost_norm(boosted + fused)
        return out


class Zenith(RankingModel):
    """Zenith with UG-Sep; ``forward(features) -> {task: logits [N]}``. See ``ZenithConfig``."""

    config_class = ZenithConfig

    def __init__(self, config: ZenithConfig) -> None:
        super().__init__(config)
        width = config.width
        self.embedding = FeatureEmbedding(config.features, width)
        user_plan, item_plan = config.plans()
        counts = config.token_counts()
        self.user_tokenizer = PlannedTokenizer(user_plan, width, width)
        self.item_tokenizer = PlannedTokenizer(item_plan, width, width)
        self.token_norm = each_side(*counts[0], lambda _: RMSNorm(width))
        self.layers = nn.ModuleList(ZenithLayer(config, *after) for after in counts[1:])
        self.heads = nn.ModuleDict({task: Head(width, config.tower) for task in config.tasks})
        self.ug_sep = config.ug_sep

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task."""
        vectors = self.embedding(features)
        x: Tokens = separate(self.user_tokenizer(vectors), self.item_tokenizer(vectors), self.ug_sep)
        # Embeddings differ in scale by orders of magnitude, and RSA is cubic in them: normalise first.
        x = self.token_norm(x)
        for layer in self.layers:
            x = layer(x)
        pooled = x.mean()  # [N, D]
        return {task: head(pooled) for task, head in self.heads.items()}


MODEL = Zenith
