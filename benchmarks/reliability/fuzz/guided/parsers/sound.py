"""A small model as the files of a bundle describe it: the sound inputs of several parsers."""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.backends.built_engine import BuiltEngine, EngineWeight, TensorSpec
from engines.backends.engine_spec import Profile, Rows
from engines.bundle.manifest import BatchTiming, Engine, Manifest
from graphs.base.names import USER_INDEX

__all__ = ["ITEM", "TASK", "USER", "sound_arrays", "sound_manifest"]

USER = (TensorSpec("user_id", "int64", ("users",)), TensorSpec("age", "float32", ("users", 3)))
ITEM = (TensorSpec("item_id", "int64", ("candidates",)), TensorSpec("genres", "float32", ("candidates", 4)))
TASK = TensorSpec("like", "float32", ("candidates",))
_STATE = TensorSpec("state", "float32", ("users", 8))
_INDEX = TensorSpec(USER_INDEX, "int64", ("candidates",))


def sound_manifest() -> Manifest:
    """Return a manifest in which every field has a value; its files are not hashed yet."""
    profiles = (Profile(Rows(1, 1, 4), Rows(1, 9, 64)),)
    weights = (EngineWeight("tower.weight", "fused-int8", "MatMulNBits"),)
    shared: dict[str, Any] = {
        "backend": "onnxruntime",
        "bytes": 3,
        "session": {"threads": 1, "spinning": False, "arena": "off"},
        "requires": {"isa": "avx2"},
        "tools": {"onnxruntime": "1.23.0"},
        "profiles": profiles,
        "weights": weights,
        "figures": {"seconds": 0.5},
        "notes": ("one_user is faster",),
    }
    user = BuiltEngine(side="user", precision="fp32", files=("user.onnx",), inputs=USER, outputs=(_STATE,), **shared)
    item = BuiltEngine(
        side="item",
        precision="w8a32",
        files=("item.onnx",),
        inputs=(*ITEM, _STATE, _INDEX),
        outputs=(TASK,),
        **shared,
    )
    return Manifest(
        model="small",
        rebuild="ugsep build small.yaml",
        opset=21,
        engines=(Engine("engines/user", user), Engine("engines/item", item)),
        tools={"ugsep": "0.1.0"},
        host={"isa": "avx2"},
        choice={"user": "engines/user", "item": "engines/item"},
        reasons={"item": "0.2 ms"},
        calibration="ab" * 32,
        vocabularies={"user_id": 50, "item_id": 61},
        content_key="cd" * 32,
        passed=True,
        batching=(BatchTiming(2, 9, 1.0, 0.5), BatchTiming(4, 9, 2.0, 0.75)),
    )


def sound_arrays(users: int, candidates: int) -> dict[str, np.ndarray]:
    """Return features of the model by name, with ``user_index`` if there are several users."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for specs, rows in ((USER, users), (ITEM, candidates)):
        for spec in specs:
            shape = (rows, *(int(size) for size in spec.shape[1:]))
            if spec.dtype == "int64":
                made[spec.name] = rng.integers(0, 50, shape)
            else:
                made[spec.name] = rng.standard_normal(shape).astype(np.float32)
    if users > 1:
        made[USER_INDEX] = np.arange(candidates) % users
    return made
