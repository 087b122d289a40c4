"""Models of RecBole: of fields, of a history and an item, and of a user and an item."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.model_zoo.packages.inputs import (
    HIDDEN,
    ITEM_FIELDS,
    USER_FIELDS,
    Features,
    Models,
    ZooModel,
    history,
    ids,
    lengths,
    spread,
)
from benchmarks.model_zoo.packages.recbole_fields import ITEM, LENGTH, SEEN, USER, fields, settings

_CONTEXT_USER, _CONTEXT_ITEM = (USER, *USER_FIELDS[1:]), (ITEM, *ITEM_FIELDS[1:])


def _made(kind: str, name: str, changes: Mapping[str, Any]) -> Any:
    module = importlib.import_module(f"recbole.model.{kind}_recommender")
    return spread(getattr(module, name)(settings(name, changes), fields()))


def _context(name: str, **changes: Any) -> Callable[[], ZooModel]:
    def make() -> ZooModel:
        model = Features(_made("context_aware", name, changes)).eval()
        return ZooModel(model, {"features": ids((*_CONTEXT_USER, *_CONTEXT_ITEM))}, _CONTEXT_USER, _CONTEXT_ITEM)

    return make


def _towers() -> ZooModel:
    model = Features(_made("context_aware", "DSSM", {"double_tower": True, "mlp_hidden_size": list(HIDDEN)}))
    return ZooModel(model.eval(), {"features": ids((*_CONTEXT_USER, *_CONTEXT_ITEM))}, _CONTEXT_USER, _CONTEXT_ITEM)


def _sequential(name: str, with_user: bool = False, **changes: Any) -> ZooModel:
    model = Features(_made("sequential", name, changes), "predict").eval()
    example: dict[str, torch.Tensor] = {SEEN: history(), LENGTH: lengths(), ITEM: ids((ITEM,))[ITEM]}
    user: tuple[str, ...] = (SEEN, LENGTH)
    if with_user:
        example[USER], user = ids((USER,))[USER], (*user, USER)
    return ZooModel(model, {"features": example}, user, (ITEM,))


def _general(name: str, **changes: Any) -> ZooModel:
    model = Features(_made("general", name, changes), "predict").eval()
    return ZooModel(model, {"features": ids((USER, ITEM))}, (USER,), (ITEM,))


_DEEP = {"mlp_hidden_size": list(HIDDEN)}

MODELS: Models = {
    "AFM": _context("AFM"),
    "AutoInt": _context("AutoInt", **_DEEP),
    "DCN": _context("DCN", **_DEEP),
    "DCN-V2": _context("DCNV2", **_DEEP),
    "DCN-V2, mixture": _context("DCNV2", mixed=True, structure="parallel", **_DEEP),
    "DeepFM": _context("DeepFM", **_DEEP),
    "EulerNet": _context("EulerNet"),
    "FFM": _context("FFM", fields=None),
    "FiGNN": _context("FiGNN"),
    "FM": _context("FM"),
    "FNN": _context("FNN", **_DEEP),
    "FwFM": _context("FwFM", fields=None),
    "LR": _context("LR"),
    "NFM": _context("NFM", **_DEEP),
    "PNN": _context("PNN", use_inner=True, use_outer=False, **_DEEP),
    "WideDeep": _context("WideDeep", **_DEEP),
    "xDeepFM": _context("xDeepFM", cin_layer_size=[64, 32], **_DEEP),
    "DSSM": _towers,
    "BERT4Rec": partial(_sequential, "BERT4Rec"),
    "Caser": partial(_sequential, "Caser", with_user=True),
    "CORE": partial(_sequential, "CORE"),
    "FOSSIL": partial(_sequential, "FOSSIL", with_user=True),
    "FPMC": partial(_sequential, "FPMC", with_user=True, loss_type="BPR"),
    "GRU4Rec": partial(_sequential, "GRU4Rec"),
    "HGN": partial(_sequential, "HGN", with_user=True),
    "LightSANs": partial(_sequential, "LightSANs"),
    "NARM": partial(_sequential, "NARM"),
    "NextItNet": partial(_sequential, "NextItNet"),
    "NPE": partial(_sequential, "NPE", with_user=True),
    "RepeatNet": partial(_sequential, "RepeatNet"),
    "SASRec": partial(_sequential, "SASRec", hidden_size=64),
    "SHAN": partial(_sequential, "SHAN", with_user=True, INVERSE_ITEM_SEQ=SEEN),
    "SINE": partial(_sequential, "SINE"),
    "SRGNN": partial(_sequential, "SRGNN"),
    "STAMP": partial(_sequential, "STAMP"),
    "TransRec": partial(_sequential, "TransRec", with_user=True, loss_type="BPR"),
    "BPR": partial(_general, "BPR"),
    "ConvNCF": partial(_general, "ConvNCF", embedding_size=64),
    "NeuMF": partial(_general, "NeuMF"),
}
