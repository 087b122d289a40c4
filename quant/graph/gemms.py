"""The quantizable weights of an ONNX graph, read without loading its external data."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from export.io import read_graph
from export.metadata import keep_float_patterns
from graphs.base.errors import UgsepError, first_line, printable_line
from quant.arrays import Array

ONNX_DOMAINS = ("", "ai.onnx")


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


def load_graph(path: Path) -> ir.Model:
    """Load a graph; external data stays on disk.

    Raises:
        UgsepError: no such file, not ONNX, a node that its operator does not allow, or an opset before 21 (no blocked
            DequantizeLinear).
    """
    proto = read_graph(path)
    try:
        _check_nodes(proto)
        model = graph_of(proto, path.parent)
    except Exception as error:  # onnx_ir raises many classes for a broken graph
        reason = printable_line(first_line(error))
        raise UgsepError(f"'{path}' is not a valid graph ({reason:.200}); export the model again") from error
    opset = max((version for domain, version in model.opset_imports.items() if domain in ONNX_DOMAINS), default=0)
    if opset < 21:
        raise UgsepError(f"'{path}' has opset {opset}; int8 weights need opset 21, export it again")
    return model


def _check_nodes(proto: onnx.ModelProto) -> None:
    """Check the numbers of inputs and outputs and the types of attributes of nodes that hold no graph.

    Raises:
        onnx.checker.ValidationError: a node is not as its operator is defined.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {used.domain: used.version for used in proto.opset_import}
    for node in proto.graph.node:
        if not any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            onnx.checker.check_node(node, context)


def graph_of(proto: onnx.ModelProto, folder: Path = Path()) -> ir.Model:
    """Return a graph whose external data is in ``folder``; only value_info that it declares is written back."""
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, folder)
    declared = {value.name for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    for value in model.graph.initializers.values():
        if value.name not in declared:
            value.type = value.shape = None
    return model


def weights_of(model: ir.Model) -> tuple[Weight, ...]:
    """Return every MatMul weight and embedding table in graph order, those that cannot be quantized included."""
    kinds: dict[ir.Value, set[str]] = {}
    inputs: dict[ir.Value, dict[str, None]] = {}
    for node in model.graph:
        for position, value in enumerate(node.inputs):
            if value is None or not value.is_initializer():
                continue
            role = _role(node, position)
            kinds.setdefault(value, set()).add(role)
            if role == "matmul":
                inputs.setdefault(value, {})[name_of(node.inputs[0])] = None
    found = []
    for value, roles in kinds.items():
        if not roles & {"matmul", "table"}:
            continue
        tensor = tensor_of(value)
        shape = tuple(tensor.shape.numpy())
        kind: Literal["matmul", "table"] = "matmul" if "matmul" in roles else "table"
        if kind == "table" and (len(shape) != 2 or tensor.dtype != ir.DataType.FLOAT):
            continue  # Gather also indexes shapes and masks
        refusal = _refusal(kind, roles, tensor, value.is_graph_output())
        found.append(Weight(name_of(value), kind, shape, tuple(inputs.get(value, ())), refusal))
    return tuple(found)


def name_of(value: ir.Value | None) -> str:
    """Return the name of a node's input."""
    assert value is not None
    assert value.name is not None
    return value.name


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of an initializer."""
    assert value.const_value is not None
    return value.const_value


def _role(node: ir.Node, position: int) -> str:
    if node.domain not in ONNX_DOMAINS:
        return node.op_type
    if node.op_type == "MatMul" and position == 1:
        return "matmul"
    if node.op_type == "Gather" and position == 0 and node.attributes.get_int("axis", 0) == 0:
        return "table"
    return node.op_type


def _refusal(kind: str, roles: set[str], tensor: ir.TensorProtocol, is_output: bool) -> str:
    others = sorted(roles - {kind})
    if others:
        return f"also read by {', '.join(others)}"
    if is_output:
        return "is a graph output"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"is {tensor.dtype.name.lower()}, not float32"
    if kind == "matmul" and len(tensor.shape) not in (2, 3):
        return f"has {len(tensor.shape)} axes; int8 is defined for [K, N] and [T, K, N]"
    return ""


def matching(name: str, patterns: tuple[str, ...]) -> str:
    """Return the first glob that matches the name, or ""."""
    return next((p for p in patterns if fnmatchcase(name, p)), "")


def read_tensor(tensor: ir.TensorProtocol) -> Array:
    """Return a tensor's values; external data is memory-mapped, not read.

    Raises:
        UgsepError: the external file is missing or too short.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    path, dtype, shape = Path(tensor.path), tensor.dtype.numpy(), tensor.shape.numpy()
    offset = tensor.offset or 0
    need = offset + tensor.nbytes
    if not path.is_file() or path.stat().st_size < need:
        raise UgsepError(f"'{path}' is missing or truncated (weight '{tensor.name}'); export the model again")
    if need == offset:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def quantizable(model: ir.Model, path: Path) -> tuple[Weight, ...]:
    """Return the MatMul weights of a graph that may become int8; raises as ``keep_float_patterns``."""
    keep = keep_float_patterns(model, path)
    return tuple(w for w in weights_of(model) if w.kind == "matmul" and not w.refusal and not matching(w.name, keep))
