"""Modules that look up padded features in the tables of TorchRec's collections, or take what was found outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphs.base.errors import UgsepError
from graphs.trace.jagged.stand_ins import PaddedKeys, PaddedRows, PooledEmbeddings


@dataclass(frozen=True)
class Lookup:
    """One feature looked up in one table: ``name`` is what the collection calls the result."""

    name: str
    feature: str
    table: str
    rows: int


class Collection(nn.Module):
    """What stands in for a collection of tables; ``where`` is its path in the model."""

    def __init__(self, where: str, lookups: tuple[Lookup, ...], outside: dict[str, str] | None) -> None:
        super().__init__()
        self.where = where
        self.lookups = lookups
        self.outside = outside  # the input that holds the result of each lookup, or None: look up here

    def features_of(self, given: object) -> PaddedKeys:
        """Return the features that the model looks up.

        Raises:
            UgsepError: they are kept in the model, or one is missing.
        """
        if not isinstance(given, PaddedKeys):
            raise UgsepError(
                f"submodule '{self.where}' looks up a {type(given).__name__} that is neither an input nor made in "
                "forward; make the KeyedJaggedTensor an input of the model, where each feature has a side"
            )
        for lookup in self.lookups:
            if lookup.feature not in given.features:
                raise UgsepError(
                    f"submodule '{self.where}' looks up '{lookup.feature}', which the KeyedJaggedTensor lacks; add "
                    "the feature to the example"
                )
        return given


class PaddedBags(Collection):
    """Stands in for an EmbeddingBagCollection: sums and means over padded ids."""

    def __init__(self, where: str, collection: Any, outside: dict[str, str] | None) -> None:
        super().__init__(where, tuple(_lookups(collection.embedding_bag_configs())), outside)
        if outside is None:
            self.embedding_bags = collection.embedding_bags
        self.mean = {c.name for c in collection.embedding_bag_configs() if c.pooling.name == "MEAN"}
        self.weighted = bool(collection.is_weighted())

    def forward(self, features: Any) -> PooledEmbeddings:
        """Return pooled embeddings, [N, width] for each lookup."""
        given = self.features_of(features)
        return PooledEmbeddings({lookup.name: self._pooled(given, lookup) for lookup in self.lookups})

    def _pooled(self, features: PaddedKeys, lookup: Lookup) -> Tensor:
        ids = features[lookup.feature]
        if self.outside is not None:
            return ids.vectors[self.outside[lookup.name]]
        if self.weighted and not ids.has_weights:
            raise UgsepError(
                f"submodule '{self.where}' is weighted, but '{lookup.feature}' has no weights; give the "
                "KeyedJaggedTensor weights, or the collection is_weighted=False"
            )
        vectors = functional.embedding(ids.rows, self.embedding_bags[lookup.table].weight).float()
        weights = ids.row_weights if self.weighted else None
        if ids.counts is None:
            return vectors if weights is None else vectors * weights.unsqueeze(1)
        filled = ids.filled().to(vectors.dtype)
        shares = filled if weights is None else filled * weights
        total = (vectors * shares.unsqueeze(2)).sum(1)
        if lookup.table not in self.mean:
            return total
        # Of the places, not of the lengths, which may exceed what a float or a runtime's Clip holds; of none it is 0.
        return total / filled.sum(1, keepdim=True).clamp(min=1)


class PaddedEmbeddings(Collection):
    """Stands in for an EmbeddingCollection: a vector per id, padded."""

    def __init__(self, where: str, collection: Any, outside: dict[str, str] | None) -> None:
        super().__init__(where, tuple(_lookups(collection.embedding_configs())), outside)
        if outside is None:
            self.embeddings = collection.embeddings

    def forward(self, features: Any) -> dict[str, PaddedRows]:
        """Return, by name of a lookup, vectors [N, L, width], or [N, width] of features with one id per row."""
        given = self.features_of(features)
        return {lookup.name: self._vectors(given, lookup) for lookup in self.lookups}

    def _vectors(self, features: PaddedKeys, lookup: Lookup) -> PaddedRows:
        ids = features[lookup.feature]
        if self.outside is not None:
            vectors = ids.vectors[self.outside[lookup.name]]
        else:
            vectors = functional.embedding(ids.rows, self.embeddings[lookup.table].weight).float()
        return PaddedRows.of(lookup.name, vectors, ids.counts, mask=ids.own.get("mask"))


class Regrouped(nn.Module):
    """Stands in for a KTRegroupAsDict, whose cache and kernel cannot be traced."""

    def __init__(self, groups: list[list[str]], keys: list[str]) -> None:
        super().__init__()
        self.groups = groups
        self.keys = keys

    def forward(self, keyed_tensors: list[Any]) -> dict[str, Tensor]:
        """Return each group's embeddings side by side, [N, sum of widths]."""
        found: dict[str, Tensor] = {}
        for keyed in keyed_tensors:
            found |= keyed.to_dict()
        return {
            key: torch.cat([found[n] for n in group], 1) for key, group in zip(self.keys, self.groups, strict=True)
        }


def _lookups(configs: list[Any]) -> Iterator[Lookup]:
    """Yield the lookups of tables in order; those of a feature with several are ``feature@table``, as in TorchRec."""
    features = [feature for config in configs for feature in config.feature_names]
    for config in configs:
        for feature in config.feature_names:
            name = f"{feature}@{config.name}" if features.count(feature) > 1 else feature
            yield Lookup(name, feature, config.name, config.num_embeddings)
