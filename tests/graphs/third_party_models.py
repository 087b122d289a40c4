"""Ranking models of other libraries as factories: ``(module, example, user inputs, item inputs)``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

N = 5
VOCABULARY, WIDTH, HISTORY = 1000, 16, 30
USER_FIELDS = tuple(f"user_{i}" for i in range(8))
ITEM_FIELDS = tuple(f"item_{i}" for i in range(6))
DENSE = {"user_dense": 5, "item_dense": 4}


@dataclass(frozen=True)
class ThirdPartyModel:
    """A model with an example of its inputs and their sides."""

    module: nn.Module
    example: dict[str, Any]
    user: tuple[str, ...]
    item: tuple[str, ...]


class Columns(nn.Module):
    """Feeds named tensors to a model that reads one matrix, columns in the model's order."""

    def __init__(self, model: nn.Module, order: list[str]) -> None:
        super().__init__()
        self.model = model
        self.order = order

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        columns = [features[name].float().reshape(features[name].shape[0], -1) for name in self.order]
        y: Tensor = self.model(torch.cat(columns, 1)).squeeze(-1)
        return y


class Features(nn.Module):
    """Feeds one dict of tensors to a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.model(features)
        return y


def _ids(names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: torch.randint(1, VOCABULARY, (N,)) for name in names}


def _dense() -> dict[str, Tensor]:
    return {name: torch.randn(N, width) for name, width in DENSE.items()}


def _spread(model: nn.Module) -> nn.Module:
    """Set every parameter to values as large as a trained model's, so that wrong scores are visible."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower() and "bn" not in name and parameter.dim() > 1:
            nn.init.normal_(
                parameter, std=0.5 if "embed" in name else parameter.shape[-1] ** -0.5, generator=generator
            )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def _deepctr_columns(sequence: bool = False) -> list[Any]:
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    columns: list[Any] = [SparseFeat(name, VOCABULARY, WIDTH) for name in (*USER_FIELDS, *ITEM_FIELDS)]
    columns += [DenseFeat(name, width) for name, width in DENSE.items()]
    if sequence:
        shown = SparseFeat("hist_item_0", VOCABULARY, WIDTH, embedding_name="item_0")
        columns.append(VarLenSparseFeat(shown, maxlen=HISTORY, length_name="length"))
    return columns


def _deepctr(make: Callable[[list[Any]], nn.Module], sequence: bool = False) -> ThirdPartyModel:
    columns = _deepctr_columns(sequence)
    model = _spread(make(columns))
    example = {**_ids((*USER_FIELDS, *ITEM_FIELDS)), **_dense()}
    user: tuple[str, ...] = (*USER_FIELDS, "user_dense")
    if sequence:
        example["hist_item_0"] = torch.randint(1, VOCABULARY, (N, HISTORY))
        example["length"] = torch.tensor([HISTORY, 3, 11, 1, 20])
        user = (*user, "hist_item_0", "length")
    wrapped = Columns(model, list(model.feature_index)).eval()  # type: ignore[arg-type]  # a plain attribute
    return ThirdPartyModel(wrapped, {"features": example}, user, (*ITEM_FIELDS, "item_dense"))


def deepctr_deepfm() -> ThirdPartyModel:
    from deepctr_torch.models import DeepFM

    return _deepctr(lambda c: DeepFM(c, c, dnn_hidden_units=(256, 128), dnn_use_bn=True))


def deepctr_autoint() -> ThirdPartyModel:
    from deepctr_torch.models import AutoInt

    return _deepctr(lambda c: AutoInt(c, c, att_layer_num=2, dnn_hidden_units=(256, 128)))


def deepctr_dcn_v2() -> ThirdPartyModel:
    from deepctr_torch.models import DCN

    return _deepctr(lambda c: DCN(c, c, cross_num=3, cross_parameterization="matrix", dnn_hidden_units=(256, 128)))


def deepctr_din() -> ThirdPartyModel:
    from deepctr_torch.models import DIN

    return _deepctr(lambda c: DIN(c, ["item_0"], dnn_hidden_units=(256, 128), att_weight_normalization=True), True)


def _rechub_features(names: tuple[str, ...]) -> list[Any]:
    from torch_rechub.basic.features import SparseFeature

    return [SparseFeature(name, vocab_size=VOCABULARY, embed_dim=WIDTH) for name in names]


def _rechub_history() -> list[Any]:
    from torch_rechub.basic.features import SequenceFeature

    return [
        SequenceFeature(
            "history", vocab_size=VOCABULARY, embed_dim=WIDTH, pooling="concat", shared_with="item_0", padding_idx=0
        )
    ]


def _rechub(model: nn.Module, history: bool = False) -> ThirdPartyModel:
    example = _ids((*USER_FIELDS, *ITEM_FIELDS))
    user: tuple[str, ...] = USER_FIELDS
    if history:
        example["history"] = torch.randint(1, VOCABULARY, (N, HISTORY))
        example["history"][1, 4:] = 0
        user = (*user, "history")
    return ThirdPartyModel(Features(_spread(model)).eval(), {"features": example}, user, ITEM_FIELDS)


def rechub_deepfm() -> ThirdPartyModel:
    from torch_rechub.models.ranking import DeepFM

    features = _rechub_features((*USER_FIELDS, *ITEM_FIELDS))
    return _rechub(DeepFM(features, features, {"dims": [256, 128], "dropout": 0.2, "activation": "relu"}))


def rechub_dcn_v2() -> ThirdPartyModel:
    from torch_rechub.models.ranking import DCNv2

    features = _rechub_features((*USER_FIELDS, *ITEM_FIELDS))
    return _rechub(DCNv2(features, 2, {"dims": [256, 128]}, use_low_rank_mixture=True))


def rechub_autoint() -> ThirdPartyModel:
    from torch_rechub.models.ranking import AutoInt

    return _rechub(
        AutoInt(_rechub_features((*USER_FIELDS, *ITEM_FIELDS)), [], num_layers=2, mlp_params={"dims": [256]})
    )


def rechub_din() -> ThirdPartyModel:
    from torch_rechub.models.ranking import DIN

    users, items = _rechub_features(USER_FIELDS), _rechub_features(ITEM_FIELDS)
    mlp, attention = {"dims": [256, 128]}, {"dims": [64, 32]}
    return _rechub(DIN(users + items[1:], _rechub_history(), items[:1], mlp, attention), history=True)


def rechub_two_tower() -> ThirdPartyModel:
    from torch_rechub.models.matching import DSSM

    tower = {"dims": [256, 128, 64]}
    return _rechub(DSSM(_rechub_features(USER_FIELDS), _rechub_features(ITEM_FIELDS), tower, tower))


def rechub_mmoe() -> ThirdPartyModel:
    from torch_rechub.models.multi_task import MMOE

    features = _rechub_features((*USER_FIELDS, *ITEM_FIELDS))
    tasks = ["classification", "regression"]
    return _rechub(MMOE(features, tasks, 4, {"dims": [128]}, [{"dims": [32]}, {"dims": [32]}]))


class HistoryRanker(nn.Module):
    """A transformer encoder over the user's history, and candidates that attend to it."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=64,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.items = nn.Embedding(VOCABULARY, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.head = nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 1))

    def forward(self, history: Tensor, mask: Tensor, item: Tensor) -> Tensor:
        memory = self.encoder(input_ids=history, attention_mask=mask).last_hidden_state  # [N, L, 64]
        query = self.items(item).unsqueeze(1)
        seen, _ = self.attention(query, memory, memory, key_padding_mask=mask == 0, need_weights=False)
        y: Tensor = self.head(torch.cat([seen, query], -1)).flatten()
        return y


def transformers_history() -> ThirdPartyModel:
    lengths = torch.tensor([HISTORY, 3, 11, 1, 20])
    example = {
        "history": torch.randint(1, VOCABULARY, (N, HISTORY)),
        "mask": (torch.arange(HISTORY) < lengths[:, None]).long(),
        "item": torch.randint(1, VOCABULARY, (N,)),
    }
    return ThirdPartyModel(_spread(HistoryRanker()), example, ("history", "mask"), ("item",))


# name: the package it needs, the factory
THIRD_PARTY: dict[str, tuple[str, Callable[[], ThirdPartyModel]]] = {
    "DeepFM (deepctr-torch)": ("deepctr_torch", deepctr_deepfm),
    "DCN-V2 (deepctr-torch)": ("deepctr_torch", deepctr_dcn_v2),
    "AutoInt (deepctr-torch)": ("deepctr_torch", deepctr_autoint),
    "DIN (deepctr-torch)": ("deepctr_torch", deepctr_din),
    "DeepFM (torch-rechub)": ("torch_rechub", rechub_deepfm),
    "DCN-V2 mixture (torch-rechub)": ("torch_rechub", rechub_dcn_v2),
    "AutoInt (torch-rechub)": ("torch_rechub", rechub_autoint),
    "DIN (torch-rechub)": ("torch_rechub", rechub_din),
    "two-tower DSSM (torch-rechub)": ("torch_rechub", rechub_two_tower),
    "MMoE, 2 tasks (torch-rechub)": ("torch_rechub", rechub_mmoe),
    "BERT history + cross-attention (transformers)": ("transformers", transformers_history),
}


def make(name: str) -> ThirdPartyModel:
    """Build a model by name, quietly."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return THIRD_PARTY[name][1]()
