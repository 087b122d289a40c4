"""Inputs and outputs of an ONNX graph as the contract describes them."""

from __future__ import annotations

import onnx
from onnx import helper

from engines.backends.built_engine import TensorSpec


def graph_io(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a graph; dynamic axes by name."""
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    tensor = info.type.tensor_type
    dims: list[int | str] = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return TensorSpec(info.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, tuple(dims))
