"""The quantizable weights of an ONNX graph, read without loading its external data."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from export.io import read_graph
from export.metadata import keep_float_patterns
from graphs.base.errors import UgsepError
from quant.arrays import Array


@dataclass(frozen=True)
class Weight:
    """A float32 initializer that MatMul or Gather reads.

    ``kind`` matmul: [K, N] or [T, K, N], and ``inputs`` names the tensors multiplied with it. ``kind`` table: an
    embedding table [V, D], looked up by Gather. ``refusal`` says why the weight cannot be quantized, or is "".
    """

    name: str
    kind: Literal["matmul", "table"]
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    refusal: str = ""

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return int(np.prod(self.shape))


def load_graph(path: Path) -> onnx.ModelProto:
    """Load the graph alone; external data stays on disk.

    Raises:
        UgsepError: no such file, not ONNX, or an opset before 21 (no blocked DequantizeLinear).
    """
    model = read_graph(path)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < 21:
        raise UgsepError(f"'{path}' has opset {opset}; int8 weights need opset 21, export it again")
    return model


def weights_of(model: onnx.ModelProto) -> tuple[Weight, ...]:
    """Return every MatMul weight and embedding table in graph order, those that cannot be quantized included."""
    initializers = {t.name: t for t in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    kinds: dict[str, set[str]] = {}
    inputs: dict[str, list[str]] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name not in initializers:
                continue
            role = _role(node, position)
            kinds.setdefault(name, set()).add(role)
            if role == "matmul":
                fed = inputs.setdefault(name, [])
                if node.input[0] not in fed:
                    fed.append(node.input[0])
    found = []
    for name, roles in kinds.items():
        if not roles & {"matmul", "table"}:
            continue
        tensor = initializers[name]
        kind: Literal["matmul", "table"] = "matmul" if "matmul" in roles else "table"
        if kind == "table" and (len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT):
            continue  # Gather also indexes shapes and masks
        shape = tuple(tensor.dims)
        refusal = _refusal(kind, roles, shape, tensor.data_type, name in outputs)
        found.append(Weight(name, kind, shape, tuple(inputs.get(name, ())), refusal))
    return tuple(found)


def _role(node: onnx.NodeProto, position: int) -> str:
    if node.domain not in ("", "ai.onnx"):
        return node.op_type
    if node.op_type == "MatMul" and position == 1:
        return "matmul"
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    if node.op_type == "Gather" and position == 0 and axis == 0:
        return "table"
    return node.op_type


def _refusal(kind: str, roles: set[str], shape: tuple[int, ...], data_type: int, is_output: bool) -> str:
    others = sorted(roles - {kind})
    if others:
        return f"also read by {', '.join(others)}"
    if is_output:
        return "is a graph output"
    if data_type != TensorProto.FLOAT:
        return f"is {TensorProto.DataType.Name(data_type).lower()}, not float32"
    if kind == "matmul" and len(shape) not in (2, 3):
        return f"has {len(shape)} axes; int8 is defined for [K, N] and [T, K, N]"
    return ""


def matching(name: str, patterns: tuple[str, ...]) -> str:
    """Return the first glob that matches the name, or ""."""
    return next((p for p in patterns if fnmatchcase(name, p)), "")


def read_tensor(tensor: TensorProto, folder: Path) -> Array:
    """Return an initializer's values; external data is memory-mapped, not read.

    Raises:
        UgsepError: the external file is missing or too short.
    """
    if not uses_external_data(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    info = ExternalDataInfo(tensor)
    path = folder / info.location
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    offset = info.offset or 0
    need = offset + int(np.prod(shape)) * dtype.itemsize
    if not path.is_file() or path.stat().st_size < need:
        raise UgsepError(f"'{path}' is missing or truncated (weight '{tensor.name}'); export the model again")
    if need == offset:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def quantizable(model: onnx.ModelProto) -> tuple[Weight, ...]:
    """Return the MatMul weights of a graph that may become int8."""
    keep = keep_float_patterns(model)
    return tuple(w for w in weights_of(model) if w.kind == "matmul" and not w.refusal and not matching(w.name, keep))
