"""From features to tokens: embeddings, and prime tokens that never cut a feature (Zenith, 2601.21285)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphs.errors import UgsepError
from graphs.features import Feature, Side, of_side


class FeatureEmbedding(nn.Module):
    """One vector per feature: ids looked up [N, D], sequences mean-pooled without padding [N, D], dense as is."""

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
        """Draw the tables with a small standard deviation, so that rare ids start near zero."""
        for table in self.tables.values():
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each feature's vector [N, D] (dense: [N, width])."""
        return {f.name: self._embed(f, inputs[f.name]) for f in self.features}

    def _embed(self, feature: Feature, value: Tensor) -> Tensor:
        if feature.kind == "dense":
            return value
        vectors: Tensor = self.tables[feature.table_name](value)  # [N, D] or [N, S, D]
        if feature.kind == "id":
            return vectors
        present = (value != 0).to(vectors.dtype).unsqueeze(-1)  # [N, S, 1]
        return (vectors * present).sum(1) / present.sum(1).clamp_min(1.0)  # [N, D]


def vector_width(feature: Feature, width: int) -> int:
    """Width of a feature's vector: D, or its own width where it is dense."""
    return feature.width if feature.kind == "dense" else width


@dataclass(frozen=True)
class TokenPlan:
    """One embedded id (``tokens=1``, used as it is) or features projected together to ``tokens`` tokens."""

    features: tuple[Feature, ...]
    tokens: int
    projected: bool


def plan_prime_tokens(features: tuple[Feature, ...], side: Side, count: int, field: str) -> tuple[TokenPlan, ...]:
    """Share ``count`` tokens out over one side's features: a token per id, the rest by semantic group.

    Groups are merged with their neighbours when there are more groups than tokens, and get several tokens
    each when there are fewer; no feature is cut across two groups.

    Raises:
        UgsepError: too few tokens for the id features; ``field`` names the config field.
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
            f"{field} is {count}, but the {side} side has {len(ids)} id features with a token each; give {need}"
        )
    plans = [TokenPlan((f,), 1, projected=False) for f in ids]
    left = count - len(ids)
    if not groups:
        return tuple(plans)
    buckets: list[list[Feature]] = [[] for _ in range(min(left, len(groups)))]
    for index, members in enumerate(groups.values()):
        buckets[index * len(buckets) // len(groups)].extend(members)
    for index, members in enumerate(buckets):
        tokens = left // len(buckets) + (1 if index < left % len(buckets) else 0)
        plans.append(TokenPlan(tuple(members), tokens, projected=True))
    return tuple(plans)


class PrimeTokenizer(nn.Module):
    """Zenith's prime tokens of one side: [T, N, D] from the feature vectors (2601.21285, prime tokenization)."""

    def __init__(self, plans: tuple[TokenPlan, ...], width: int) -> None:
        super().__init__()
        self.plans = plans
        self.width = width
        self.groups = nn.ModuleList(
            nn.Sequential(
                nn.Linear(sum(vector_width(f, width) for f in p.features), p.tokens * width),
                nn.GELU(),
                nn.Linear(p.tokens * width, p.tokens * width),
            )
            for p in plans
            if p.projected
        )

    def forward(self, vectors: dict[str, Tensor]) -> Tensor:
        """Return the side's tokens, token-major [T, N, D]."""
        tokens: list[Tensor] = []
        projections = iter(self.groups)
        for plan in self.plans:
            joined = torch.cat([vectors[f.name] for f in plan.features], -1)  # [N, sum of widths]
            if plan.projected:
                projected = next(projections)(joined)  # [N, tokens*D]
                tokens.extend(projected.unflatten(-1, (plan.tokens, self.width)).unbind(1))
            else:
                tokens.append(joined)
        return torch.stack(tokens)  # [T, N, D]
