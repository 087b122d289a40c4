"""Damaged ONNX graphs, as a hostile author of a bundle would write them: seeded, and aware of the format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

SIZES = (-(2**63), -(2**31), -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
OPS = ("Add", "Gather", "Reshape", "MatMul", "Loop", "If", "Scan", "ConstantOfShape", "Expand", "Tile", "Slice",
       "DequantizeLinear", "Concat", "Transpose", "Softmax", "TopK", "NoSuchOp")  # fmt: skip
PLACES = ("../secret", "/etc/passwd", "", ".", "..", "nowhere.data", "a\0b", "\n[/b]", "*/_ORT_MEM_ADDR_/*",
          "full.onnx")  # fmt: skip


def mutate(path: Path, rng: Random) -> str:
    """Damage an ONNX file in place, in one to three ways; return what was done."""
    model = onnx.load(path, load_external_data=False)
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.choice(list(KINDS))
        done.append(f"{kind}: {KINDS[kind](model, rng)}")
    path.write_bytes(model.SerializeToString())
    return f"{path.name}: {'; '.join(done)}"


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for attribute in _attributes(model.graph):
        if attribute.HasField("t"):
            yield attribute.t


def _attributes(graph: GraphProto) -> Iterator[AttributeProto]:
    return (attribute for node in graph.node for attribute in node.attribute)


def _tensor(model: ModelProto, rng: Random) -> TensorProto:
    return rng.choice(list(_tensors(model)))


def _dims(model: ModelProto, rng: Random) -> str:
    tensor = _tensor(model, rng)
    what = rng.choice(("set", "append", "clear"))
    if what == "append" or not tensor.dims:
        tensor.dims.append(rng.choice(SIZES))
    elif what == "clear":
        del tensor.dims[:]
    else:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(SIZES)
    return f"{tensor.name} {list(tensor.dims)}"


def _swapped_dims(model: ModelProto, rng: Random) -> str:
    tensor = _tensor(model, rng)
    tensor.dims[:] = list(tensor.dims)[::-1] + rng.choice(([], [1]))
    return f"{tensor.name} {list(tensor.dims)}"


def _dtype(model: ModelProto, rng: Random) -> str:
    tensor = _tensor(model, rng)
    tensor.data_type = rng.choice((-1, 0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 17, 21, 22, 23, 99, 2**31 - 1))
    return f"{tensor.name} {tensor.data_type}"


def _raw_data(model: ModelProto, rng: Random) -> str:
    tensor = _tensor(model, rng)
    size = len(tensor.raw_data)
    kept = tensor.raw_data[: rng.choice((0, 1, size // 2, max(size - 1, 0)))]
    tensor.raw_data = kept + b"\xff" * rng.choice((0, 0, 5))
    return f"{tensor.name} {len(tensor.raw_data)} of {size} bytes"


def _typed_data(model: ModelProto, rng: Random) -> str:
    tensor = _tensor(model, rng)
    field = rng.choice(("float_data", "int32_data", "int64_data", "double_data", "uint64_data"))
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    getattr(tensor, field).extend([1] * rng.choice((0, 1, 5, 1000)))
    return f"{tensor.name} {field}"


def _external(model: ModelProto, rng: Random) -> str:
    held = [t for t in _tensors(model) if t.external_data]
    tensor = rng.choice(held) if held and rng.random() < 0.8 else _tensor(model, rng)
    if not tensor.external_data:
        tensor.data_location = TensorProto.EXTERNAL
        if rng.random() < 0.7:
            tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value="item.onnx.data")
    key = rng.choice(("location", "offset", "length"))
    value = rng.choice(PLACES) if key == "location" else str(rng.choice((*SIZES, "x", "1e3", " 7", 2**70)))
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
            break
    else:
        tensor.external_data.add(key=key, value=value)
    return f"{tensor.name} {key} {value!a}"


def _attribute(model: ModelProto, rng: Random) -> str:
    attribute = rng.choice(list(_attributes(model.graph)))
    if attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(SIZES)
    elif attribute.type == AttributeProto.INTS:
        attribute.ints[:] = [rng.choice(SIZES) for _ in range(rng.choice((0, 1, len(attribute.ints) or 1, 40)))]
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    else:
        attribute.type = rng.choice((0, 1, 2, 4, 7, 14))
    return f"{attribute.name} {str(attribute)[:60]!a}"


def _op_type(model: ModelProto, rng: Random) -> str:
    node = rng.choice(model.graph.node)
    before = node.op_type
    node.op_type = rng.choice(OPS)
    node.domain = rng.choice((node.domain, "", "com.microsoft", "x\x1b[2J"))
    return f"{before} becomes {node.op_type} of {node.domain!a}"


def _rename(model: ModelProto, rng: Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    before = tensor.name
    tensor.name = rng.choice(("", rng.choice(model.graph.initializer).name, "x\n[/b]", model.graph.input[0].name))
    return f"{before} becomes {tensor.name!a}"


def _edge(model: ModelProto, rng: Random) -> str:
    node = rng.choice([n for n in model.graph.node if n.input])
    place = rng.randrange(len(node.input))
    names = [name for n in model.graph.node for name in (*n.input, *n.output)]
    node.input[place] = rng.choice((rng.choice(names), "", "nowhere"))
    return f"input {place} of {node.op_type}"


def _nodes(model: ModelProto, rng: Random) -> str:
    place = rng.randrange(len(model.graph.node))
    if rng.random() < 0.5:
        del model.graph.node[place]
        return f"no node {place}"
    model.graph.node.append(model.graph.node[place])
    return f"node {place} twice"


def _ends(model: ModelProto, rng: Random) -> str:
    info = rng.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    tensor = info.type.tensor_type
    if rng.random() < 0.3 or not tensor.shape.dim:
        tensor.elem_type = rng.choice((0, 1, 7, 8, 10, 99))
    else:
        dim = rng.choice(tensor.shape.dim)
        dim.dim_value = rng.choice(SIZES)
    return f"{info.name}"


def _version(model: ModelProto, rng: Random) -> str:
    if rng.random() < 0.5:
        model.ir_version = rng.choice((-1, 0, 3, 99, 2**62))
    else:
        model.opset_import[0].version = rng.choice((-1, 0, 1, 9, 99, 2**62))
    return "versions"


def _constant(model: ModelProto, rng: Random) -> str:
    """Another value for an integer constant: a shape, an axis, an index."""
    held = [t for t in _tensors(model) if t.data_type == TensorProto.INT64 and len(t.raw_data) >= 8]
    if not held:
        return "nothing"
    tensor = rng.choice(held)
    place = 8 * rng.randrange(len(tensor.raw_data) // 8)
    value = rng.choice(SIZES)
    tensor.raw_data = (
        tensor.raw_data[:place] + value.to_bytes(8, "little", signed=True) + tensor.raw_data[place + 8 :]
    )
    return f"{tensor.name} {value}"


def _metadata(model: ModelProto, rng: Random) -> str:
    key = rng.choice(("ugsep.side", "ugsep.keep_float", "ugsep.quant", "ugsep.precision"))
    value = rng.choice(("", "both", "[", "[" * 5000, "null", "7", '{"a": 1}', "\x1b[2J", '["[/b]"]'))
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value
            return f"{key} {value[:20]!a}"
    model.metadata_props.add(key=key, value=value)
    return f"{key} {value[:20]!a}"


KINDS: dict[str, Callable[[ModelProto, Random], str]] = {
    "dims": _dims, "swapped dims": _swapped_dims, "dtype": _dtype, "raw data": _raw_data, "typed data": _typed_data,
    "external": _external, "attribute": _attribute, "op type": _op_type, "name": _rename, "edge": _edge,
    "nodes": _nodes, "ends": _ends, "version": _version, "constant": _constant, "metadata": _metadata,
}  # fmt: skip
