"""Rankers of FuxiCTR's embeddings and layers; its wheel ships the layers, not the models of its zoo."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_zoo.packages.inputs import (
    FIELDS,
    HIDDEN,
    HISTORY,
    ITEM_FIELDS,
    USER_FIELDS,
    VOCABULARY,
    WIDTH,
    Models,
    ZooModel,
    history,
    ids,
    spread,
)

_FLAT = len(FIELDS) * WIDTH


def _feature_map(seen: bool) -> Any:
    from fuxictr.features import FeatureMap

    made = FeatureMap("zoo", tempfile.gettempdir())
    categorical = {"type": "categorical", "vocab_size": VOCABULARY}
    specs = [(name, {**categorical, "source": name.split("_")[0]}) for name in FIELDS]
    if seen:
        sequence = {"type": "sequence", "vocab_size": VOCABULARY, "max_len": HISTORY, "padding_idx": 0}
        specs.append(("history", {**sequence, "source": "user", "share_embedding": "item_0"}))
    made.features = OrderedDict(specs)
    made.num_fields = made.get_num_fields()
    made.default_emb_dim = WIDTH
    made.labels = ["click"]
    made.set_column_index()
    return made


class Summed(nn.Module):
    """A ranker: embeddings [N, fields, WIDTH], read by branches whose outputs are summed to a logit."""

    def __init__(self, embedding: nn.Module, flat: Mapping[str, nn.Module], stacked: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.embedding = embedding
        self.flat = nn.ModuleDict(flat)
        self.stacked = nn.ModuleDict(stacked)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits [N]."""
        embedded = self.embedding(features)
        flat = [branch(embedded.flatten(1)) for branch in self.flat.values()]
        stacked = [branch(embedded).flatten(1) for branch in self.stacked.values()]
        return torch.cat([*flat, *stacked], 1).sum(1)


class WithFirstOrder(nn.Module):
    """A ranker with a logistic regression over the fields themselves beside it."""

    def __init__(self, ranker: nn.Module, first_order: nn.Module) -> None:
        super().__init__()
        self.ranker = ranker
        self.first_order = first_order

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits [N]."""
        logits: Tensor = self.ranker(features) + self.first_order(features).flatten()
        return logits


class Attended(nn.Module):
    """A ranker with attention of the item over the history, then a network."""

    def __init__(self, embedding: nn.Module, attention: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.attention = attention
        self.network = network

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits [N]."""
        embedded = self.embedding(features)
        seen = self.attention(embedded["item_0"], embedded["history"], features["history"] != 0)
        fields = [embedded[name] for name in FIELDS]
        logits: Tensor = self.network(torch.cat([*fields, seen], 1)).squeeze(1)
        return logits


def _network(width: int = _FLAT, hidden: tuple[int, ...] = HIDDEN) -> nn.Module:
    from fuxictr.pytorch.layers import MLP_Block

    made: nn.Module = MLP_Block(width, hidden_units=list(hidden), output_dim=1)
    return made


def _summed(
    flat: Callable[[], Mapping[str, nn.Module]] = dict,
    stacked: Callable[[], Mapping[str, nn.Module]] = dict,
    first_order: bool = False,
) -> Callable[[], ZooModel]:
    def make() -> ZooModel:
        from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression

        known = _feature_map(False)
        model: nn.Module = Summed(FeatureEmbedding(known, WIDTH), flat(), stacked())
        model = WithFirstOrder(model, LogisticRegression(known)) if first_order else model
        return ZooModel(spread(model), {"features": ids()}, USER_FIELDS, ITEM_FIELDS)

    return make


def _attended(attention: Callable[[], nn.Module]) -> Callable[[], ZooModel]:
    def make() -> ZooModel:
        from fuxictr.pytorch.layers import FeatureEmbeddingDict

        model = Attended(FeatureEmbeddingDict(_feature_map(True), WIDTH), attention(), _network(_FLAT + WIDTH))
        example = {**ids(), "history": history()}
        return ZooModel(spread(model), {"features": example}, (*USER_FIELDS, "history"), ITEM_FIELDS)

    return make


def _layer(name: str, *arguments: Any, **settings: Any) -> nn.Module:
    from fuxictr.pytorch import layers

    made: nn.Module = getattr(layers, name)(*arguments, **settings)
    return made


def _then(name: str, width: int, *arguments: Any, **settings: Any) -> nn.Module:
    """Return a layer, its output flattened to ``width``, and a network over it."""
    return nn.Sequential(_layer(name, *arguments, **settings), nn.Flatten(), _network(width))


_COUNT = len(FIELDS)
_PAIRS = _COUNT * (_COUNT - 1) // 2

MODELS: Models = {
    "FM": _summed(stacked=lambda: {"fm": _layer("InnerProductInteraction", _COUNT)}, first_order=True),
    "DNN": _summed(lambda: {"deep": _network()}),
    "DeepFM": _summed(
        lambda: {"deep": _network()}, lambda: {"fm": _layer("InnerProductInteraction", _COUNT)}, first_order=True
    ),
    "DCN": _summed(
        lambda: {"deep": _network(), "cross": nn.Sequential(_layer("CrossNet", _FLAT, 3), nn.Linear(_FLAT, 1))}
    ),
    "DCN-V2": _summed(
        lambda: {"deep": _network(), "cross": nn.Sequential(_layer("CrossNetV2", _FLAT, 3), nn.Linear(_FLAT, 1))}
    ),
    "DCN-V2, mixture": _summed(
        lambda: {"deep": _network(), "cross": nn.Sequential(_layer("CrossNetMix", _FLAT), nn.Linear(_FLAT, 1))}
    ),
    "xDeepFM": _summed(
        lambda: {"deep": _network()}, lambda: {"cin": _layer("CompressedInteractionNet", _COUNT, [64, 32])}
    ),
    "PNN": _summed(
        stacked=lambda: {"pairs": _then("InnerProductInteraction", _PAIRS, _COUNT, output="inner_product")}
    ),
    "FiBiNET": _summed(
        stacked=lambda: {
            "senet": nn.Sequential(
                _layer("SqueezeExcitation", _COUNT),
                _then("BilinearInteractionV2", _PAIRS * WIDTH, _COUNT, WIDTH, "field_each"),
            ),
            "plain": _then("BilinearInteraction", _PAIRS * WIDTH, _COUNT, WIDTH, "field_all"),
        }
    ),
    "HFM, circular convolution": _summed(
        stacked=lambda: {"pairs": _then("HolographicInteraction", _PAIRS * WIDTH, _COUNT)}
    ),
    "DeepIM": _summed(lambda: {"deep": _network()}, lambda: {"orders": _layer("InteractionMachine", WIDTH, order=3)}),
    "DIN": _attended(lambda: _layer("DIN_Attention", WIDTH, attention_units=[64, 32])),
    "multi-head target attention": _attended(
        lambda: _layer("MultiHeadTargetAttention", WIDTH, attention_dim=32, num_heads=4)
    ),
}
