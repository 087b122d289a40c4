"""Dense parts of TorchRec's models: what reads the pooled lookups, which are inputs as if from a parameter server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_zoo.packages.inputs import HIDDEN, ROWS, Models, ZooModel, spread

_WIDTH, _USER, _ITEM, _DENSE = 64, 18, 8, 13


class Dense(nn.Module):
    """A model behind its lookups: dense features, then pooled embeddings of the user's and of the item's fields."""

    def __init__(self, dense: nn.Module, interaction: nn.Module, over: nn.Module) -> None:
        super().__init__()
        self.dense = dense
        self.interaction = interaction
        self.over = over

    def forward(self, user_dense: Tensor, user_pooled: Tensor, item_pooled: Tensor) -> Tensor:
        """Return logits [N] of dense features [N, D] and lookups [N, fields, WIDTH]."""
        pooled = torch.cat([user_pooled, item_pooled], 1)
        y: Tensor = self.over(self.interaction(self.dense(user_dense), pooled))
        return y.squeeze(1)


class Keyed(nn.Module):
    """Gives the lookups to an interaction that reads a KeyedTensor."""

    def __init__(self, interaction: nn.Module, keys: list[str]) -> None:
        super().__init__()
        self.interaction = interaction
        self.keys = keys

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Return the interaction's output [N, width] of lookups [N, fields, WIDTH]."""
        from torchrec.sparse.jagged_tensor import KeyedTensor

        y: Tensor = self.interaction(dense, KeyedTensor(self.keys, [_WIDTH] * len(self.keys), pooled.flatten(1)))
        return y


def _model(interaction: Callable[[int], tuple[nn.Module, int]], over: Callable[[int], nn.Module]) -> ZooModel:
    from torchrec.models.dlrm import DenseArch

    made, width = interaction(_USER + _ITEM)
    model = Dense(DenseArch(_DENSE, [256, 128, _WIDTH]), made, over(width))
    example = {
        "user_dense": torch.randn(ROWS, _DENSE),
        "user_pooled": torch.randn(ROWS, _USER, _WIDTH),
        "item_pooled": torch.randn(ROWS, _ITEM, _WIDTH),
    }
    return ZooModel(spread(model), example, ("user_dense", "user_pooled"), ("item_pooled",))


def _dlrm(interaction: Callable[[int], tuple[nn.Module, int]]) -> Callable[[], ZooModel]:
    def over(width: int) -> nn.Module:
        from torchrec.models.dlrm import OverArch

        made: nn.Module = OverArch(width, [512, *HIDDEN, 1])
        return made

    return lambda: _model(interaction, over)


def _pairs(fields: int) -> tuple[nn.Module, int]:
    from torchrec.models.dlrm import InteractionArch

    return InteractionArch(fields), _WIDTH + fields * (fields + 1) // 2


def _cross(kind: str, **settings: Any) -> Callable[[int], tuple[nn.Module, int]]:
    def make(fields: int) -> tuple[nn.Module, int]:
        from torchrec.models.dlrm import InteractionDCNArch
        from torchrec.modules import crossnet

        width = (fields + 1) * _WIDTH
        return InteractionDCNArch(fields, getattr(crossnet, kind)(width, 3, **settings)), width

    return make


def _projection(fields: int) -> tuple[nn.Module, int]:
    from torchrec.models.dlrm import DenseArch, InteractionProjectionArch

    one, other = (DenseArch((fields + 1) * _WIDTH, [128, 8 * _WIDTH]) for _ in range(2))
    return InteractionProjectionArch(fields, one, other), _WIDTH + 64


def _factorized(fields: int) -> tuple[nn.Module, int]:
    from torchrec.models.deepfm import FMInteractionArch

    keys = [f"field_{i}" for i in range(fields)]
    return Keyed(FMInteractionArch((fields + 1) * _WIDTH, keys, 128), keys), _WIDTH + 128 + 1


def _deepfm() -> ZooModel:
    def over(width: int) -> nn.Module:
        from torchrec.models.deepfm import OverArch

        made: nn.Module = OverArch(width)
        return made

    return _model(_factorized, over)


MODELS: Models = {
    "DLRM": _dlrm(_pairs),
    "DLRM-DCN, low rank": _dlrm(_cross("LowRankCrossNet", low_rank=64)),
    "DLRM-DCN, full rank": _dlrm(_cross("CrossNet")),
    "DLRM-DCN, vectors": _dlrm(_cross("VectorCrossNet")),
    "DLRM-DCN, mixture": _dlrm(_cross("LowRankMixtureCrossNet", num_experts=2, low_rank=64)),
    "DLRM, projection": _dlrm(_projection),
    "DeepFM": _deepfm,
}
