"""From features to tokens: embeddings, and prime tokens that never split a feature (Zenith, 2601.21285)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphs.base.errors import UgsepError
from graphs.base.features import Feature, of_side
from graphs.base.names import Side
from graphs.layers.parameter_counts import Count, Counts, linear, norm, tokenwise_linear
from graphs.layers.tokenwise import TokenwiseLinear, cut_last


class FeatureEmbedding(nn.Module):
    """One vector per feature: ids looked up [N, D], sequences mean-pooled without padding [N, D], dense unchanged."""

    def __init__(self, features: tuple[Feature, ...], width: int) -> None:
        super().__init__()
        self.features = features
        rows: dict[str, int] = {}
        for f in features:
            if f.kind != "dense":
                rows[f.table_name] = max(rows.get(f.table_name, 0), f.vocab)
        self.tables = nn.ModuleDict({name: nn.Embedding(count, width) for name, count in rows.items()})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise with a small standard deviation, so that rare ids start near zero."""
        for table in self.tables.values():
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, inputs: dict[str, Tensor], but: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the vector [N, D] (dense: [N, width]) of each feature ``but`` some."""
        return {f.name: self._embed(f, inputs[f.name]) for f in self.features if f.name not in but}

    def _embed(self, feature: Feature, value: Tensor) -> Tensor:
        if feature.kind == "dense":
            return value
        vectors: Tensor = self.tables[feature.table_name](value)  # [N, D] or [N, S, D]
        if feature.kind == "id":
            return vectors
        present = (value != 0).to(vectors.dtype).unsqueeze(-1)  # [N, S, 1]
        return (vectors * present).sum(1) / present.sum(1).clamp_min(1.0)  # [N, D]


def vector_width(feature: Feature, width: int) -> int:
    """Return the width of a feature's vector: D, or its own width if dense."""
    return feature.width if feature.kind == "dense" else width


@dataclass(frozen=True)
class TokenPlan:
    """One embedded id (``tokens=1``, not projected) or features projected together to ``tokens`` tokens."""

    features: tuple[Feature, ...]
    tokens: int
    projected: bool


def plan_prime_tokens(features: tuple[Feature, ...], side: Side, count: int) -> tuple[TokenPlan, ...]:
    """Allot ``count`` tokens to one side's features: one per id, the rest by semantic group.

    If there are more groups than tokens, neighbouring groups are merged; if fewer, groups get several tokens. No
    feature is split between two groups.

    Raises:
        UgsepError: too few tokens for the id features.
    """
    mine = of_side(features, side)
    ids = [f for f in mine if f.kind == "id"]
    groups: dict[str, list[Feature]] = {}
    for f in mine:
        if f.kind != "id":
            groups.setdefault(f.group or f.name, []).append(f)
    least = len(ids) + (1 if groups else 0)
    if count < least or (not groups and count != least):
        need = f"at least {least}" if groups else f"{least}"
        raise UgsepError(
            f"{side}_tokens is {count}, but the {side} side has {len(ids)} id features, each a token; give {need}"
        )
    plans = tuple(TokenPlan((f,), 1, projected=False) for f in ids)
    return plans + _share_out(groups, count - len(ids)) if groups else plans


def plan_group_tokens(features: tuple[Feature, ...], side: Side, count: int) -> tuple[TokenPlan, ...]:
    """Allot ``count`` >= 1 tokens to one side's semantic groups, ids included; each group is projected."""
    groups: dict[str, list[Feature]] = {}
    for f in of_side(features, side):
        groups.setdefault(f.group or f.name, []).append(f)
    return _share_out(groups, count)


def _share_out(groups: dict[str, list[Feature]], count: int) -> tuple[TokenPlan, ...]:
    """Merge neighbouring groups if there are more than ``count``, else give each several tokens."""
    buckets: list[list[Feature]] = [[] for _ in range(min(count, len(groups)))]
    for index, members in enumerate(groups.values()):
        buckets[index * len(buckets) // len(groups)].extend(members)
    more = count % len(buckets)
    return tuple(
        TokenPlan(tuple(members), count // len(buckets) + (index < more), projected=True)
        for index, members in enumerate(buckets)
    )


def joined_width(features: Iterable[Feature], width: int) -> int:
    """Return the width of the concatenated vectors of some features."""
    return sum(vector_width(f, width) for f in features)


def group_network(features: Iterable[Feature], embedding_width: int, outputs: int) -> nn.Sequential:
    """Return the MLP that projects the concatenated vectors of a group: [N, sum of widths] -> [N, outputs]."""
    return nn.Sequential(
        nn.Linear(joined_width(features, embedding_width), outputs), nn.GELU(), nn.Linear(outputs, outputs)
    )


class PlannedTokenizer(nn.Module):
    """The tokens of one side by a plan: [T, N, D] from the feature vectors.

    ``plan_prime_tokens`` gives Zenith's prime tokens (2601.21285), ``plan_group_tokens`` the semantic groups of
    TokenMixer-Large (2602.06563). Each projected group has its own MLP.
    """

    def __init__(self, plans: tuple[TokenPlan, ...], embedding_width: int, width: int) -> None:
        super().__init__()
        self.plans = plans
        self.width = width
        self.groups = nn.ModuleList(
            group_network(p.features, embedding_width, p.tokens * width) for p in plans if p.projected
        )

    def forward(self, vectors: dict[str, Tensor]) -> Tensor:
        """Return the side's tokens, token-major [T, N, D]."""
        tokens: list[Tensor] = []
        projections = iter(self.groups)
        for plan in self.plans:
            joined = torch.cat([vectors[f.name] for f in plan.features], -1)  # [N, sum of widths]
            if plan.projected:
                projected = next(projections)(joined)  # [N, tokens*D]
                tokens.extend(cut_last(projected, plan.tokens).unbind(1))
            else:
                tokens.append(joined)
        return torch.stack(tokens)  # [T, N, D]


def plan_counts(plans: tuple[TokenPlan, ...], embedding_width: int, width: int) -> Count:
    """Return the cost of a ``PlannedTokenizer``."""
    total = Count()
    for p in plans:
        if p.projected:
            total += group_network_counts(p.features, embedding_width, p.tokens * width)
    return total


def prime_token_counts(
    plans: tuple[tuple[TokenPlan, ...], tuple[TokenPlan, ...]], width: int, ug_sep: bool
) -> Counts:
    """Return the cost of both sides' prime tokens and of the norm over them."""
    gain = norm(width)
    user, item = (plan_counts(plan, width, width) for plan in plans)
    return Counts(user + gain if ug_sep else user, item + gain)


def group_network_counts(features: tuple[Feature, ...], embedding_width: int, outputs: int) -> Count:
    """Return the cost of a ``group_network``, zero without features."""
    if not features:
        return Count()
    return linear(joined_width(features, embedding_width), outputs) + linear(outputs, outputs)


def in_semantic_order(features: tuple[Feature, ...], side: Side) -> tuple[Feature, ...]:
    """Return one side's features ordered by group, groups in order of appearance."""
    mine = of_side(features, side)
    groups = list(dict.fromkeys(f.group or f.name for f in mine))
    return tuple(sorted(mine, key=lambda f: groups.index(f.group or f.name)))


def chunk_width(features: tuple[Feature, ...], side: Side, count: int, embedding_width: int) -> int:
    """Return the width of each of ``count`` equal chunks of one side's concatenated vectors, the last padded.

    Raises:
        UgsepError: so many chunks that one would be all padding.
    """
    total = joined_width(of_side(features, side), embedding_width)
    chunk = -(-total // count)
    if chunk * (count - 1) >= total:
        most = next(c for c in range(min(count, total), 0, -1) if -(-total // c) * (c - 1) < total)
        raise UgsepError(
            f"{side}_tokens is {count}, but the {side} side's vectors are {total} wide together and leave a token "
            f"empty; give {most} or a larger embedding_width"
        )
    return chunk


class ChunkTokenizer(nn.Module):
    """RankMixer's tokens of one side: vectors concatenated in semantic order, cut into equal chunks, projected.

    [T, N, D] from the feature vectors; the last chunk is padded with zeros (2507.15551, tokenization).
    """

    def __init__(self, features: tuple[Feature, ...], embedding_width: int, chunk: int, tokens: int, width: int):
        super().__init__()
        self.features = features
        self.tokens = tokens
        self.padding = tokens * chunk - joined_width(features, embedding_width)
        self.project = TokenwiseLinear(tokens, chunk, width)

    def forward(self, vectors: dict[str, Tensor]) -> Tensor:
        """Return the side's tokens, token-major [T, N, D]."""
        joined = torch.cat([vectors[f.name] for f in self.features], -1)
        if self.padding:
            joined = functional.pad(joined, (0, self.padding))
        chunks = cut_last(joined, self.tokens)  # [N, T, chunk]
        tokens: Tensor = self.project(chunks.transpose(0, 1))
        return tokens


def chunk_counts(chunk: int, tokens: int, width: int) -> Count:
    """Return the cost of a ``ChunkTokenizer``."""
    return tokenwise_linear(tokens, chunk, width)
