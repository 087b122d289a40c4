"""What the server says about itself and its models, as plain values that both protocols send."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engines.serve.oip.signature import Signature, datatype_of, feature_dtype
from graphs.base.names import USER_INDEX

__all__ = ["EXTENSIONS", "SERVER_NAME", "TensorMetadata", "model_config", "model_metadata", "server_version"]

SERVER_NAME = "ugsep"
EXTENSIONS = ("binary_tensor_data", "model_configuration")


@dataclass(frozen=True)
class TensorMetadata:
    """One tensor: -1 stands for any number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model; ``platform`` is informative."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@cache
def server_version() -> str:
    """Return the version of the installed ugsep."""
    try:
        return version("ugsep")
    except PackageNotFoundError:
        return "unknown"  # run from a source tree that is not installed


def model_metadata(signature: Signature, users_only: bool) -> ModelMetadata:
    """Describe the ranking model, or its user graph."""
    served = signature.served
    inputs = tuple(
        TensorMetadata(i.name, i.datatype, (-1, *i.row_shape))
        for i in signature.inputs.values()
        if i.role == "user" or not users_only
    )
    if users_only:
        outputs = tuple(
            TensorMetadata(s.name, datatype_of(feature_dtype(s.dtype)), (-1, *(int(size) for size in s.shape[1:])))
            for s in signature.states
        )
    else:
        outputs = tuple(TensorMetadata(name, "FP32", (-1,)) for name in signature.outputs)
    chosen = served.manifest.engines[0].built.backend if served.manifest.engines else "engines"
    platform = f"ugsep_{chosen.replace('-', '_')}"
    return ModelMetadata(
        served.user_model if users_only else served.name, (served.version,), platform, inputs, outputs
    )


def model_config(signature: Signature, users_only: bool) -> dict[str, Any]:
    """Describe a model as the model configuration extension does: JSON of Triton's ModelConfig.

    Load generators read it. ``max_batch_size`` is 0, because rows are part of each tensor's own shape.
    """
    model = model_metadata(signature, users_only)
    ranker = signature.served.ranker
    limits = (
        {"max_users": ranker.max_users}
        if users_only
        else {
            "max_users": ranker.max_users,
            "max_candidates": ranker.max_candidates,
        }
    )
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": SERVER_NAME,
        "max_batch_size": 0,
        "input": [
            {
                "name": t.name,
                "data_type": f"TYPE_{t.datatype}",
                "dims": list(t.shape),
                "optional": t.name == USER_INDEX,
            }
            for t in model.inputs
        ],
        "output": [{"name": t.name, "data_type": f"TYPE_{t.datatype}", "dims": list(t.shape)} for t in model.outputs],
        "parameters": {name: {"string_value": str(value)} for name, value in limits.items() if value},
    }
