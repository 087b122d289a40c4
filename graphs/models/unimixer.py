"""UniMixer and UniMixing-Lite (arXiv 2604.00590): learned block mixing, SiameseNorm, with UG-Sep (2602.10455)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.base.limits import MAX_SIZE, check_range
from graphs.base.names import SIDES
from graphs.layers.block_mixing import BlockMixing
from graphs.layers.parameter_counts import Count, Counts, compensation, heads, norm, product, tokenwise_swiglu
from graphs.layers.tokenize import ChunkTokenizer, FeatureEmbedding, chunk_counts, chunk_width, in_semantic_order
from graphs.layers.tokenwise import Head, RMSNorm, TokenwiseSwiGLU
from graphs.layers.ugsep import Compensation, Tokens, each_side, separate
from graphs.models.ranking_model import ModelConfig, RankingModel

MAX_SINKHORN_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class UniMixerConfig(ModelConfig):
    """Sizes specific to UniMixer.

    ``block`` is B, the width of a mixing block; it divides D, so that no block straddles two tokens. ``hidden`` is
    the inner width of the SwiGLU. ``lite`` builds the mixing matrices from ``bases`` shared matrices and at rank
    ``rank``. During training the temperature falls geometrically from ``first_temperature`` to ``last_temperature``
    [open, like ``sinkhorn_steps``].

    Raises:
        UgsepError: a block that straddles tokens, a temperature not above 0, or a side's vectors too narrow.
    """

    hidden: int = 256
    embedding_width: int = 16
    block: int = 16
    lite: bool = False
    bases: int = 4
    rank: int = 8
    sinkhorn_steps: int = 20
    first_temperature: float = 1.0
    last_temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, MAX_SIZE, self, "hidden", "embedding_width", "block", "bases", "rank")
        check_range(1, MAX_SINKHORN_STEPS, self, "sinkhorn_steps")
        for name in ("first_temperature", "last_temperature"):
            if not 0 < getattr(self, name) <= MAX_SIZE:
                raise UgsepError(f"{name} is {getattr(self, name)}; it must be above 0 and at most {MAX_SIZE}")
        if self.width % self.block:
            works = next(b for b in range(min(self.block, self.width), 0, -1) if self.width % b == 0)
            raise UgsepError(
                f"block {self.block} does not divide width {self.width}, blocks would straddle tokens; "
                f"block = {works} works"
            )
        self.chunks()

    def blocks(self) -> tuple[int, int]:
        """Return (user, item) block counts of a layer; user is 0 when unmasked."""
        user, item = self.sides()
        return user * self.width // self.block, item * self.width // self.block

    def chunks(self) -> tuple[int, int]:
        """Return the chunk widths of user and item tokens."""
        user = chunk_width(self.features, "user", self.user_tokens, self.embedding_width)
        return user, chunk_width(self.features, "item", self.item_tokens, self.embedding_width)

    def counts(self) -> Counts:
        """Return parameters and FLOPs by formula; the mixing matrices are precomputed for inference."""
        (n, m), chunks = self.sides(), self.chunks()
        tokens = (
            chunk_counts(c, t, self.width) for c, t in zip(chunks, (self.user_tokens, self.item_tokens), strict=True)
        )
        total = Counts(*tokens) + heads(len(self.tasks), self.width, self.tower)
        total += Counts(norm(self.width) if n else Count(), norm(self.width))
        layer = Counts(self._network_counts(n), self._network_counts(m)) + self._mixing_counts()
        if n and self.compensation:
            layer += compensation(n, m, self.width)
        for _ in range(self.layers):
            total += layer
        return total

    def _network_counts(self, tokens: int) -> Count:
        return tokenwise_swiglu(tokens, self.width, self.hidden) + norm(self.width) * 3 if tokens else Count()

    def _mixing_counts(self) -> Counts:
        (u, g), b = self.blocks(), self.block
        free = (u + g) * b * b + (u + g) ** 2
        lite = self.bases * (b * b + u + g) + 2 * self.rank * (u + g)
        user = product(u, b, b) + product(b, u, u) + product(b, u, g)
        return Counts(user, product(g, b, b) + product(b, g, g) + Count(lite if self.lite else free))


class UniMixerBlock(nn.Module):
    """``pSwiGLU(O)`` with ``O = RMSNorm(X + UniMixing(X))``, normed token by token. Tokens in, Tokens out.

    A norm over the flattened vector of all tokens, another reading of the paper, would leak item values to user rows.
    """

    def __init__(self, config: UniMixerConfig) -> None:
        super().__init__()
        sides, width = config.sides(), config.width
        lite = (config.bases, config.rank) if config.lite else None
        self.mixing = BlockMixing(config.blocks(), config.block, width // config.block, config.sinkhorn_steps, lite)
        self.norm = each_side(*sides, lambda _: RMSNorm(width))
        self.compensation = Compensation(*sides, width) if sides[0] and config.compensation else None
        self.network = each_side(*sides, lambda tokens: TokenwiseSwiGLU(tokens, width, config.hidden))

    def forward(self, x: Tokens) -> Tokens:
        """Return the block's output, without the residual of the streams."""
        mixed: Tokens = self.norm(self.mixing(x) + x)
        if self.compensation is not None:
            mixed = self.compensation(mixed)
        out: Tokens = self.network(mixed)
        return out


class UniMixerLayer(nn.Module):
    """SiameseNorm around one block: O = Block(X + RMSNorm(Y)); X <- RMSNorm(X + O); Y <- Y + O."""

    def __init__(self, config: UniMixerConfig) -> None:
        super().__init__()
        self.stream_norm = each_side(*config.sides(), lambda _: RMSNorm(config.width))
        self.block = UniMixerBlock(config)
        self.norm = each_side(*config.sides(), lambda _: RMSNorm(config.width))

    def forward(self, x: Tokens, y: Tokens) -> tuple[Tokens, Tokens]:
        """Return both streams after the block."""
        out: Tokens = self.block(self.stream_norm(y) + x)
        normed: Tokens = self.norm(x + out)
        return normed, y + out


class UniMixer(RankingModel):
    """UniMixer with UG-Sep; ``forward(features) -> {task: logits [N]}``. See ``UniMixerConfig``."""

    config_class = UniMixerConfig
    config: UniMixerConfig

    def __init__(self, config: UniMixerConfig) -> None:
        super().__init__(config)
        width, embedding = config.width, config.embedding_width
        chunks = config.chunks()
        user, item = (in_semantic_order(config.features, side) for side in SIDES)
        self.embedding = FeatureEmbedding(config.features, embedding)
        self.user_tokenizer = ChunkTokenizer(user, embedding, chunks[0], config.user_tokens, width)
        self.item_tokenizer = ChunkTokenizer(item, embedding, chunks[1], config.item_tokens, width)
        self.layers = nn.ModuleList(UniMixerLayer(config) for _ in range(config.layers))
        self.norm = each_side(*config.sides(), lambda _: RMSNorm(width))
        self.heads = nn.ModuleDict({task: Head(width, config.tower) for task in config.tasks})
        self.at_progress(0.0)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task."""
        vectors = self.embedding(features)
        x: Tokens = separate(self.user_tokenizer(vectors), self.item_tokenizer(vectors), self.config.ug_sep)
        y = x
        for layer in self.layers:
            x, y = layer(x, y)
        pooled = (x + self.norm(y)).mean()  # [N, D]
        return {task: head(pooled) for task, head in self.heads.items()}

    def at_progress(self, fraction: float) -> None:
        """Set the temperature of every mixing after ``fraction`` (0..1) of the training."""
        first, last = self.config.first_temperature, self.config.last_temperature
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, BlockMixing):
                    module.temperature.fill_(first * (last / first) ** fraction)


MODEL = UniMixer
