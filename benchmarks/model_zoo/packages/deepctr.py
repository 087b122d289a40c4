"""Models of deepctr-torch, which reads one matrix with a column per field."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_zoo.packages.inputs import (
    DENSE,
    FIELDS,
    HIDDEN,
    HISTORY,
    ITEM_FIELDS,
    USER_FIELDS,
    VOCABULARY,
    WIDTH,
    Models,
    ZooModel,
    dense,
    history,
    ids,
    lengths,
    spread,
)


class Columns(nn.Module):
    """Feeds named tensors to a model that reads one matrix, columns in the model's order."""

    def __init__(self, model: nn.Module, order: list[str]) -> None:
        super().__init__()
        self.model = model
        self.order = order

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return scores [N], or [N, tasks]."""
        dtype = next(self.model.parameters()).dtype
        columns = [features[name].to(dtype).reshape(features[name].shape[0], -1) for name in self.order]
        y: Tensor = self.model(torch.cat(columns, 1))
        return y.squeeze(-1) if y.shape[-1] == 1 else y


def _columns(numbers: bool, sequence: bool) -> list[Any]:
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    columns: list[Any] = [SparseFeat(name, VOCABULARY, WIDTH) for name in FIELDS]
    columns += [DenseFeat(name, width) for name, width in DENSE.items()] if numbers else []
    if sequence:
        shown = SparseFeat("hist_item_0", VOCABULARY, WIDTH, embedding_name="item_0")
        columns.append(VarLenSparseFeat(shown, maxlen=HISTORY, length_name="length"))
    return columns


def _model(
    name: str, arguments: Callable[[list[Any]], tuple[Any, ...]], numbers: bool, sequence: bool, **settings: Any
) -> ZooModel:
    from deepctr_torch import models

    columns = _columns(numbers, sequence)
    model = spread(getattr(models, name)(*arguments(columns), **settings))
    example = {**ids(), **(dense() if numbers else {})}
    user, item = USER_FIELDS, ITEM_FIELDS
    if numbers:
        user, item = (*user, "user_dense"), (*item, "item_dense")
    if sequence:
        example["hist_item_0"], example["length"] = history(padded=False), lengths()
        user = (*user, "hist_item_0", "length")
    order: Any = model.feature_index
    return ZooModel(Columns(model, list(order)).eval(), {"features": example}, user, item)


def _wide_and_deep(name: str, **settings: Any) -> Callable[[], ZooModel]:
    return partial(_model, name, lambda c: (c, c), True, False, **settings)


def _deep(name: str, **settings: Any) -> Callable[[], ZooModel]:
    return partial(_model, name, lambda c: (c,), True, False, **settings)


def _of_ids(name: str, **settings: Any) -> Callable[[], ZooModel]:
    return partial(_model, name, lambda c: (c, c), False, False, **settings)


def _sequence(name: str, **settings: Any) -> Callable[[], ZooModel]:
    return partial(_model, name, lambda c: (c, ["item_0"]), True, True, **settings)


MODELS: Models = {
    "WDL": _wide_and_deep("WDL", dnn_hidden_units=HIDDEN),
    "DeepFM": _wide_and_deep("DeepFM", dnn_hidden_units=HIDDEN, dnn_use_bn=True),
    "xDeepFM": _wide_and_deep("xDeepFM", dnn_hidden_units=HIDDEN, cin_layer_size=(64, 32)),
    "AFM": _of_ids("AFM"),
    "AFN": _of_ids("AFN", ltl_hidden_size=64, afn_dnn_hidden_units=HIDDEN),
    "AutoInt": _wide_and_deep("AutoInt", att_layer_num=2, dnn_hidden_units=HIDDEN),
    "CCPM": _of_ids("CCPM", dnn_hidden_units=HIDDEN),
    "DCN, vectors": _wide_and_deep("DCN", cross_num=3, dnn_hidden_units=HIDDEN),
    "DCN, matrices": _wide_and_deep("DCN", cross_num=3, cross_parameterization="matrix", dnn_hidden_units=HIDDEN),
    "DCNMix": _wide_and_deep("DCNMix", dnn_hidden_units=HIDDEN),
    "DIFM": _of_ids("DIFM", dnn_hidden_units=HIDDEN),
    "IFM": _of_ids("IFM", dnn_hidden_units=HIDDEN),
    "FiBiNET": _wide_and_deep("FiBiNET", dnn_hidden_units=HIDDEN),
    "MLR": partial(_model, "MLR", lambda c: (c,), True, False),
    "NFM": _wide_and_deep("NFM", dnn_hidden_units=HIDDEN),
    "ONN": _of_ids("ONN", dnn_hidden_units=HIDDEN),
    "PNN, inner": _deep("PNN", dnn_hidden_units=HIDDEN),
    "PNN, outer": _deep("PNN", dnn_hidden_units=HIDDEN, use_inner=False, use_outter=True),
    "DIN": _sequence("DIN", dnn_hidden_units=HIDDEN, att_weight_normalization=True),
    "DIEN": _sequence("DIEN", dnn_hidden_units=HIDDEN, gru_type="AUGRU"),
    "ESMM": _deep("ESMM", tower_dnn_hidden_units=HIDDEN),
    "MMOE": _deep("MMOE", expert_dnn_hidden_units=HIDDEN),
    "PLE": _deep("PLE", expert_dnn_hidden_units=HIDDEN),
    "SharedBottom": _deep("SharedBottom", bottom_dnn_hidden_units=HIDDEN),
}
