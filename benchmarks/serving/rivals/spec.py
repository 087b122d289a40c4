"""What another server needs to run a bundle's engines, as data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends.built_engine import TensorSpec
from engines.bundle.manifest import Engine, Manifest, engine_for
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

CODE = Path(__file__).with_name("plain_engines.py")


def write_spec(bundle: Path, manifest: Manifest, folder: Path, cache_bytes: int) -> None:
    """Write ``spec.json`` and the code that reads it into a folder.

    Raises:
        UgsepError: the bundle's chosen engines are not those of ONNX Runtime.
    """
    user, item = engine_for(manifest, "user"), engine_for(manifest, "item")
    for engine in (user, item):
        if engine.built.backend != "onnxruntime":
            raise UgsepError(f"the {engine.built.side} engine runs on {engine.built.backend}, not on onnxruntime")
    few = item.built.profiles[0].candidates.max if "item.few_rows.onnx" in item.built.files else 0
    state_bytes = sum(row_bytes(spec) for spec in user.built.outputs)
    spec: dict[str, Any] = {
        "user": _graphs(bundle, user),
        "item": _graphs(bundle, item),
        "user_session": dict(user.built.session),
        "item_session": dict(item.built.session),
        "user_inputs": [s.name for s in user.built.inputs],
        "item_inputs": [s.name for s in item_features(manifest)],
        "states": [s.name for s in user.built.outputs],
        "outputs": [s.name for s in item.built.outputs],
        "few_up_to": few,
        "cached_users": cache_bytes // state_bytes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec, indent=1) + "\n")
    shutil.copy2(CODE, folder / CODE.name)


def item_features(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """Return the item engine's inputs that a request brings: neither states nor the index."""
    states = {s.name for s in engine_for(manifest, "user").built.outputs}
    return tuple(s for s in engine_for(manifest, "item").built.inputs if s.name not in {*states, USER_INDEX})


def _graphs(bundle: Path, engine: Engine) -> dict[str, str]:
    side, folder = engine.built.side, (bundle / engine.directory).resolve()
    names = {"any": f"{side}.onnx", "one_user": f"{side}.one_user.onnx", "few_rows": f"{side}.few_rows.onnx"}
    return {variant: str(folder / name) for variant, name in names.items() if name in engine.built.files}


def row_bytes(spec: TensorSpec) -> int:
    """Return the bytes of one row of a tensor."""
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    return int(np.prod(sizes, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
