"""Mutations of ONNX files: shapes, types, data and its places, attributes, names, metadata, and the bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from benchmarks.reliability.fuzz.mutate.byte_level import mutate_bytes
from benchmarks.reliability.fuzz.mutate.json_values import TEXTS, mutate_json

__all__ = ["mutate_onnx"]

_SIZES = (0, -1, 1, 2, 3, 7, 64, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
_OPERATORS = (
    "Add", "Mul", "MatMul", "Gather", "Reshape", "Concat", "Loop", "If", "Scan", "Softmax", "Identity", "Transpose",
    "Nothing", "", "Pow", "Cast", "Expand", "Tile", "ConstantOfShape", "DequantizeLinear", "Einsum", "Where",
)  # fmt: skip
_FLOATS = (float("nan"), float("inf"), 0.0, -1.0, 1e38, 1e-42, 100.0)


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """Return an ONNX file with one to three changes of its parts, or with changed bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            rng.choice(_CHANGES)(model, rng)
        except (IndexError, ValueError, DecodeError):  # the graph has no such part, or protobuf refuses the value
            continue
    return model.SerializeToString()


def _initializer(model: onnx.ModelProto, rng: random.Random) -> onnx.TensorProto:
    return rng.choice(model.graph.initializer)


def _dims(model: onnx.ModelProto, rng: random.Random) -> None:
    dims = _initializer(model, rng).dims
    kind = rng.randrange(4)
    if kind == 0:
        dims.append(rng.choice(_SIZES))
    elif kind == 1 and len(dims) > 1:
        dims[0], dims[1] = dims[1], dims[0]
    elif dims:
        dims[rng.randrange(len(dims))] = rng.choice(_SIZES)


def _data_type(model: onnx.ModelProto, rng: random.Random) -> None:
    _initializer(model, rng).data_type = rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 99, -1))


def _raw_data(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _initializer(model, rng)
    raw = tensor.raw_data
    tensor.raw_data = rng.choice((b"", raw[:-1], raw + b"\0", raw[: len(raw) // 2], raw * 2, rng.randbytes(len(raw))))


def _numbers(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _initializer(model, rng)
    raw = bytearray(tensor.raw_data)
    for _ in range(rng.choice((1, 8, 200))):
        at = 4 * rng.randrange(len(raw) // 4)
        raw[at : at + 4] = struct.pack("<f", rng.choice(_FLOATS))
    tensor.raw_data = bytes(raw)


def _location(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _initializer(model, rng)
    if not tensor.external_data:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "item.int8.data"), ("offset", "0"), ("length", "64")):
            tensor.external_data.add(key=key, value=value)
    entry = rng.choice(tensor.external_data)
    if entry.key == "location":
        odd = (
            "../../../etc/passwd",
            "/etc/passwd",
            "",
            ".",
            "missing",
            "item.onnx",
            "user.int8.data",
            "a\nb",
            "\x1b[1m",
        )
        entry.value = rng.choice(odd)
    else:
        entry.value = rng.choice((*map(str, _SIZES), "", "x", "1e3", " 4", "9" * 30))
    if rng.random() < 0.2:
        entry.key = rng.choice(("location", "offset", "length", "checksum", "x", ""))


def _name(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    parts: Any = rng.choice((graph.initializer, graph.input, graph.output, graph.node, graph.value_info))
    part: Any = rng.choice(parts)
    named: tuple[Any, ...] = (*graph.input, *graph.output, *graph.initializer)
    others = [one.name for one in named]
    part.name = rng.choice((*_printable(), *others))


def _edge(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    names = rng.choice((node.input, node.output))
    others = [*rng.choice(model.graph.node).output, *(one.name for one in model.graph.input), "", "nothing"]
    kind = rng.randrange(3)
    if kind == 0:
        names.append(rng.choice(others))
    elif kind == 1:
        del names[-1]
    else:
        names[rng.randrange(len(names))] = rng.choice(others)


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    if rng.random() < 0.2:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "x", "", "\x1b[1m"))
    else:
        node.op_type = rng.choice(_OPERATORS)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if node.attribute])
    attribute: Any = rng.choice(node.attribute)
    kind = rng.randrange(5)
    if kind == 0:
        attribute.type = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8))
    elif kind == 1:
        attribute.name = rng.choice(("axis", "axes", "perm", "to", "body", "", "\x1b[1m"))
    elif attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_SIZES)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice(_FLOATS)
    else:
        attribute.i = rng.choice(_SIZES)


def _input(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice((*model.graph.input, *model.graph.output, *model.graph.value_info)).type.tensor_type
    if rng.random() < 0.3:
        value.elem_type = rng.choice((0, 1, 6, 7, 8, 9, 10, 11, 16, 99))
    elif rng.random() < 0.2:
        value.shape.dim.add().dim_value = rng.choice(_SIZES)
    else:
        dim = rng.choice(value.shape.dim)
        if rng.random() < 0.5:
            dim.dim_value = rng.choice(_SIZES)
        else:
            dim.dim_param = rng.choice(_printable())


def _nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = model.graph.node
    at = rng.randrange(len(nodes))
    kind = rng.randrange(4)
    if kind == 0:
        del nodes[at]
    elif kind == 1:
        nodes.add().CopyFrom(nodes[at])
    elif kind == 2:
        moved = list(nodes)
        rng.shuffle(moved)
        del nodes[:]
        nodes.extend(moved)
    else:
        nodes[at].input[0] = nodes[-1].output[0]  # a circle


def _lists(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    part: Any = rng.choice((graph.initializer, graph.input, graph.output, graph.value_info))
    at = rng.randrange(len(part))
    if rng.random() < 0.5:
        del part[at]
    else:
        part.add().CopyFrom(part[at])


def _metadata(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.15:
        model.metadata_props.add(key=rng.choice(("ugsep.quant", "ugsep.x", "")), value=rng.choice(_printable()))
        return
    entry = rng.choice(model.metadata_props)
    if rng.random() < 0.6 and entry.value[:1] in ("{", "["):
        entry.value = mutate_json(entry.value.encode(), rng).decode("utf-8", "replace")
    else:
        entry.value = rng.choice(_printable())


def _versions(model: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        model.ir_version = rng.choice(_SIZES)
    elif kind == 1:
        rng.choice(model.opset_import).version = rng.choice((*_SIZES, 10, 18, 24))
    else:
        model.opset_import.add(domain=rng.choice(("", "com.microsoft", "x")), version=rng.choice(_SIZES))


def _printable() -> tuple[str, ...]:
    return tuple(text for text in TEXTS if "\ud800" not in text)  # protobuf takes UTF-8 only


_CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    *(_dims, _dims, _data_type, _raw_data, _numbers, _numbers, _location, _location, _name, _edge, _operator),
    *(_attribute, _attribute, _input, _input, _nodes, _lists, _metadata, _metadata, _metadata, _versions),
)
