"""Models of torch-rechub, which read a dict of features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_zoo.packages.inputs import (
    FIELDS,
    HIDDEN,
    HISTORY,
    ITEM_FIELDS,
    ROWS,
    USER_FIELDS,
    VOCABULARY,
    WIDTH,
    Features,
    Models,
    ZooModel,
    history,
    ids,
    spread,
)

_MLP = {"dims": list(HIDDEN)}
_TOWER = {"dims": [256, 128, 64]}
_TASKS = ["classification", "classification"]
_HEADS = [{"dims": [32]}, {"dims": [32]}]


def _sparse(names: tuple[str, ...] = FIELDS, width: int = WIDTH, vocabulary: int = VOCABULARY) -> list[Any]:
    from torch_rechub.basic.features import SparseFeature

    return [SparseFeature(name, vocab_size=vocabulary, embed_dim=width) for name in names]


def _shown(pooling: str = "concat") -> list[Any]:
    from torch_rechub.basic.features import SequenceFeature

    return [SequenceFeature("history", VOCABULARY, WIDTH, pooling=pooling, shared_with="item_0", padding_idx=0)]


def _model(
    package: str, name: str, arguments: Callable[[], tuple[Any, ...]], seen: bool, **settings: Any
) -> ZooModel:
    import importlib

    made = getattr(importlib.import_module(f"torch_rechub.models.{package}"), name)(*arguments(), **settings)
    example, user = ids(), USER_FIELDS
    if seen:
        example["history"], user = history(), (*USER_FIELDS, "history")
    return ZooModel(Features(spread(made)).eval(), {"features": example}, user, ITEM_FIELDS)


def _ranking(name: str, arguments: Callable[[], tuple[Any, ...]], **settings: Any) -> Callable[[], ZooModel]:
    return partial(_model, "ranking", name, arguments, False, **settings)


def _with_history(name: str, arguments: Callable[[], tuple[Any, ...]], **settings: Any) -> Callable[[], ZooModel]:
    return partial(_model, "ranking", name, arguments, True, **settings)


def _tasks(name: str, arguments: Callable[[], tuple[Any, ...]]) -> Callable[[], ZooModel]:
    return partial(_model, "multi_task", name, arguments, False)


def _towers(module: str, name: str) -> Callable[[], ZooModel]:
    return partial(_model, module, name, lambda: (_sparse(USER_FIELDS), _sparse(ITEM_FIELDS), _TOWER, _TOWER), False)


def _sides() -> tuple[list[Any], list[Any], list[Any]]:
    """Return the features of DIN and its like: all but the target, the history, the target."""
    return _sparse(USER_FIELDS) + _sparse(ITEM_FIELDS[1:]), _shown(), _sparse(ITEM_FIELDS[:1])


class NextItem(nn.Module):
    """A generative model's logit of one item behind the user's history: the prefix is the user's."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(width, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """Return scores [N] of histories [N, L] and items [N]."""
        logits: Tensor = self.model(torch.cat([history, item[:, None]], 1))[:, -1]
        return logits.gather(1, item[:, None]).squeeze(1)


def _hstu() -> ZooModel:
    from torch_rechub.models.generative import HSTUModel

    model = HSTUModel(
        VOCABULARY, d_model=64, n_heads=4, n_layers=2, dqk=16, dv=16, max_seq_len=64, use_time_embedding=False
    )
    example = {"history": history(padded=False), "item": torch.randint(1, VOCABULARY, (ROWS,))}
    return ZooModel(spread(NextItem(model, 64)), example, ("history",), ("item",))


def _ffm(name: str) -> Callable[[], ZooModel]:
    def arguments() -> tuple[Any, ...]:
        cross = _sparse(vocabulary=VOCABULARY * len(FIELDS))
        linear = _sparse(width=1)
        return (linear, cross, WIDTH, _MLP) if name == "DeepFFM" else (linear, cross, WIDTH, 2, _MLP)

    return _ranking(name, arguments)


MODELS: Models = {
    "AFM": _ranking("AFM", lambda: (_sparse(), WIDTH)),
    "AutoInt": _ranking("AutoInt", lambda: (_sparse(), []), num_layers=2, mlp_params=_MLP),
    "BST": _with_history("BST", lambda: (*_sides(), _MLP), nhead=4, max_seq_len=HISTORY + 1),
    "DCN": _ranking("DCN", lambda: (_sparse(), 3, _MLP)),
    "DCN-V2": _ranking("DCNv2", lambda: (_sparse(), 2, _MLP), use_low_rank_mixture=False),
    "DCN-V2, mixture": _ranking("DCNv2", lambda: (_sparse(), 2, _MLP)),
    "DeepFFM": _ffm("DeepFFM"),
    "FAT-DeepFFM": _ffm("FatDeepFFM"),
    "DeepFM": _ranking("DeepFM", lambda: (_sparse(), _sparse(), _MLP)),
    "DIN": _with_history("DIN", lambda: (*_sides(), _MLP, {"dims": [64, 32]})),
    "EDCN": _ranking("EDCN", lambda: (_sparse(), 2, _MLP)),
    "FiBiNet": _ranking("FiBiNet", lambda: (_sparse(), _MLP)),
    "WideDeep": _ranking("WideDeep", lambda: (_sparse(), _sparse(), _MLP)),
    "AITM": _tasks("AITM", lambda: (_sparse(), 2, {"dims": [128, 64]}, [{"dims": [32]}, {"dims": [32]}])),
    "ESMM": _tasks("ESMM", lambda: (_sparse(USER_FIELDS), _sparse(ITEM_FIELDS), _MLP, _MLP)),
    "MMOE": _tasks("MMOE", lambda: (_sparse(), _TASKS, 4, {"dims": [128]}, _HEADS)),
    "PLE": _tasks("PLE", lambda: (_sparse(), _TASKS, 2, 2, 2, {"dims": [128]}, _HEADS)),
    "SharedBottom": _tasks("SharedBottom", lambda: (_sparse(), _TASKS, _MLP, _HEADS)),
    "DSSM": _towers("matching", "DSSM"),
    "DSSM with SENet": _towers("matching.dssm_senet", "DSSM"),
    "HSTU, next item": _hstu,
}
