"""RankMixer (arXiv 2507.15551): parameter-free token mixing, one FFN per feature token, UG-Sep (2602.10455)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from graphs.base.limits import MAX_SIZE, MAX_TOKENS, check_range
from graphs.base.names import SIDES
from graphs.layers.moe import ReLUSparseFFN, check_experts
from graphs.layers.parameter_counts import (
    Count,
    Counts,
    attention,
    compensation,
    gelu_experts,
    heads,
    linear,
    norm,
    tokenwise_ffn,
)
from graphs.layers.tokenize import ChunkTokenizer, FeatureEmbedding, chunk_counts, chunk_width, in_semantic_order
from graphs.layers.tokenwise import Head, TokenwiseFFN
from graphs.layers.ugsep import Compensation, SeparatedResidual, Tokens, each_side, masked_mix, separate
from graphs.models.ranking_model import ModelConfig, RankingModel, check_divides


@dataclass(frozen=True, kw_only=True)
class RankMixerConfig(ModelConfig):
    """Sizes specific to RankMixer.

    ``hidden`` is k D, the inner width of an FFN (k is open in the paper). ``embedding_width`` is the width of an
    id's vector before the concatenation is cut into tokens. ``mixed_user_tokens`` (c_u) and ``mixed_item_tokens``
    (c_g) are the rows of the first mixing. 0 keeps n and m; other values change the token counts, which requires the
    separated residual. ``experts`` > 0 replaces each FFN by that many experts of ``hidden`` units with a ReLU router
    whose gates are penalised by ``l1_weight``.

    Raises:
        UgsepError: a width not divisible by the mixed rows, or a side's vectors too narrow for its tokens.
    """

    hidden: int = 256
    embedding_width: int = 16
    mixed_user_tokens: int = 0
    mixed_item_tokens: int = 0
    experts: int = 0
    l1_weight: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, MAX_SIZE, self, "hidden", "embedding_width")
        check_range(0, MAX_TOKENS, self, "mixed_user_tokens", "mixed_item_tokens", "experts")
        check_range(0, MAX_SIZE, self, "l1_weight")
        check_experts(self.experts, self.experts, ("experts", "experts"))
        self.chunks()
        user, item = self.token_counts()[1]
        check_divides("width", self.width, "mixed tokens (user_tokens + item_tokens, or the mixed ones)", user + item)

    def token_counts(self) -> list[tuple[int, int]]:
        """Return (user, item) token counts before layer 0 and after each layer; user is 0 when unmasked."""
        first = (self.user_tokens, self.item_tokens)
        after = (self.mixed_user_tokens or first[0], self.mixed_item_tokens or first[1])
        counts = [first] + [after] * self.layers
        return counts if self.ug_sep else [(0, n + m) for n, m in counts]

    def chunks(self) -> tuple[int, int]:
        """Return the chunk widths of user and item tokens."""
        user = chunk_width(self.features, "user", self.user_tokens, self.embedding_width)
        return user, chunk_width(self.features, "item", self.item_tokens, self.embedding_width)

    def counts(self) -> Counts:
        """Return parameters and FLOPs by formula; all experts count as active."""
        chunks, width = self.chunks(), self.width
        total = heads(len(self.tasks), width, self.tower) + Counts(
            chunk_counts(chunks[0], self.user_tokens, width), chunk_counts(chunks[1], self.item_tokens, width)
        )
        for before, after in pairwise(self.token_counts()):
            if before != after:
                total += self._separated_counts(before, after)
            if after[0] and self.compensation:
                total += compensation(*after, width)
            rows = sum(before) * width // sum(after)
            norms = norm(rows, bias=True) + norm(width, bias=True)
            total += Counts(
                self._network_counts(after[0], rows) + (norms if after[0] else Count()),
                self._network_counts(after[1], rows) + norms,
            )
        return total

    def _network_counts(self, tokens: int, inputs: int) -> Count:
        if not self.experts:
            return tokenwise_ffn(tokens, inputs, self.hidden, self.width)
        return gelu_experts(tokens, inputs, self.hidden, self.width, self.experts)

    def _separated_counts(self, before: tuple[int, int], after: tuple[int, int]) -> Counts:
        def projections(queries: int, keys: int) -> Count:
            return linear(self.width, self.width, rows=queries) + linear(self.width, self.width, rows=keys) * 2

        user = projections(after[0], before[0]).again() + attention(after[0], before[0], self.width)
        return Counts(user, projections(after[1], before[1]) + attention(after[1], sum(before), self.width))


class RankMixerLayer(nn.Module):
    """Mixing, then an FFN per feature token, post-norm; Tokens in, Tokens out (see ``token_counts``)."""

    def __init__(self, config: RankMixerConfig, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__()
        width = config.width
        rows = sum(before) * width // sum(after)  # width of a mixed row

        def network(tokens: int) -> nn.Module:
            if config.experts:
                return ReLUSparseFFN(tokens, config.experts, rows, config.hidden, width, config.l1_weight)
            return TokenwiseFFN(tokens, rows, config.hidden, width)

        self.after = after
        self.mix_norm = each_side(*after, lambda _: nn.LayerNorm(rows))
        self.compensation = Compensation(*after, width) if after[0] and config.compensation else None
        self.network = each_side(*after, network)
        self.separated = SeparatedResidual(width) if before != after else None
        self.norm = each_side(*after, lambda _: nn.LayerNorm(width))

    def forward(self, x: Tokens) -> Tokens:
        """Return the tokens after mixing and FFNs."""
        mixed = masked_mix(x, *self.after)
        if self.separated is None:
            mixed = mixed + x
        mixed = self.mix_norm(mixed)
        if self.separated is None:
            mixed = self.compensate(mixed)
            out: Tokens = self.norm(self.network(mixed) + mixed)
            return out
        fused = self.compensate(self.network(mixed))
        separated: Tokens = self.norm(fused + self.separated(fused, x))
        return separated

    def compensate(self, x: Tokens) -> Tokens:
        """Add the information compensation if enabled."""
        return x if self.compensation is None else self.compensation(x)


class RankMixer(RankingModel):
    """RankMixer with UG-Sep; ``forward(features) -> {task: logits [N]}``. See ``RankMixerConfig``."""

    config_class = RankMixerConfig
    keep_float = (*RankingModel.keep_float, "*.experts.shift")

    def __init__(self, config: RankMixerConfig) -> None:
        super().__init__(config)
        width, embedding = config.width, config.embedding_width
        chunks = config.chunks()
        user, item = (in_semantic_order(config.features, side) for side in SIDES)
        self.embedding = FeatureEmbedding(config.features, embedding)
        self.user_tokenizer = ChunkTokenizer(user, embedding, chunks[0], config.user_tokens, width)
        self.item_tokenizer = ChunkTokenizer(item, embedding, chunks[1], config.item_tokens, width)
        self.layers = nn.ModuleList(RankMixerLayer(config, *step) for step in pairwise(config.token_counts()))
        self.heads = nn.ModuleDict({task: Head(width, config.tower) for task in config.tasks})
        self.ug_sep = config.ug_sep

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task."""
        vectors = self.embedding(features)
        x: Tokens = separate(self.user_tokenizer(vectors), self.item_tokenizer(vectors), self.ug_sep)
        for layer in self.layers:
            x = layer(x)
        pooled = x.mean()  # [N, D]
        return {task: head(pooled) for task, head in self.heads.items()}


MODEL = RankMixer
