"""Inputs and outputs of an ONNX file as the contract describes them."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from engines.backends.built_engine import TensorSpec
from graphs.base.errors import UgsepError


def read_graph(path: Path) -> onnx.ModelProto:
    """Read the structure of an ONNX file; weights in external data stay on disk.

    Raises:
        UgsepError: the file is missing or is no ONNX file.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise UgsepError(f"{path}: no such file; export the model first") from error
    except Exception as error:  # protobuf raises its own classes for a broken file
        raise UgsepError(f"{path}: not a readable ONNX file; export the model again") from error


def graph_io(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a graph; dynamic axes by name."""
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    tensor = info.type.tensor_type
    dims: list[int | str] = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return TensorSpec(info.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, tuple(dims))
