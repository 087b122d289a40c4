"""What an ONNX file claims of its operators and tensors, checked against what is there, before anything runs it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import onnx_ir as ir
from onnx import GraphProto, ModelProto, OperatorSetIdProto, TensorProto
from onnx.external_data_helper import uses_external_data

from graphs.base.errors import UgsepError

__all__ = ["check_graph"]

#: Elements of one tensor: 1 TiB of int8, more than any model has and small enough for arithmetic in int64.
_MAX_ELEMENTS = 1 << 40
_MAX_RANK = 64
_MAX_DEPTH = 16  # of graphs inside the attributes of nodes
#: The newest version of each of ONNX's own operator sets; those of others are not known here.
_OPSETS = {domain or "ai.onnx": last for domain, (_, last) in onnx.defs.C.schema_version_map().items()}
_FIRST_IR = 3  # the first with opsets
_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def check_graph(model: ModelProto, path: Path) -> None:
    """Check a model's versions and texts, the shapes, types, sizes and places of its tensors, and all names.

    ``path`` is the file; its external data must lie in the same folder.

    Raises:
        UgsepError: a version that is not known, a text that is not UTF-8, a dimension or element count out of range,
            an unknown type, data that is missing, too short or too long, a location that leads out of the folder, or
            a name that is missing or given twice.
    """
    sizes: dict[str, int] = {}
    try:
        if not _FIRST_IR <= model.ir_version <= onnx.IR_VERSION:
            raise _Refused(f"its IR version is {model.ir_version}, and {_known(_FIRST_IR, onnx.IR_VERSION)}")
        for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
            _check_opsets(imports)
        _check_text("the metadata", *(text for p in model.metadata_props for text in (p.key, p.value)))
        keys = Counter(prop.key for prop in model.metadata_props)
        if len(keys) != len(model.metadata_props):
            raise _Refused(f"the metadata has {keys.most_common(1)[0][0]!a:.80} twice")
        for graph in _graphs(model):
            _check_text("the graph", *_words(graph))
            for info in (*graph.input, *graph.output, *graph.value_info):
                if info.type.HasField("tensor_type"):
                    _check_type(info)
            for tensor in _tensors(graph):
                _check_tensor(tensor, path, sizes)
        _check_names(model.graph, frozenset())
    except _Refused as error:
        raise UgsepError(f"'{path}': {error}; do not use this file, or export the model again") from error


class _Refused(Exception):
    """What is wrong with a graph."""


def _graphs(model: ModelProto) -> Iterator[Any]:
    """Yield the graph of a model, those nested in its nodes, and its functions."""
    found: list[tuple[Any, int]] = [(model.graph, 0), *((function, 0) for function in model.functions)]
    while found:
        graph, depth = found.pop()
        if depth > _MAX_DEPTH:
            raise _Refused(f"graphs are nested more than {_MAX_DEPTH} deep")
        yield graph if isinstance(graph, GraphProto) else GraphProto(node=graph.node, value_info=graph.value_info)
        for node in graph.node:
            for attribute in node.attribute:
                inner = [attribute.g] if attribute.HasField("g") else []
                found += [(nested, depth + 1) for nested in (*inner, *attribute.graphs)]


def _check_text(what: str, *words: object) -> None:
    """Check that texts are UTF-8; protobuf gives others as bytes, which no comparison with a known name finds."""
    for word in words:
        if not isinstance(word, str):
            raise _Refused(f"{what} has the text {word!a:.80}, which is not UTF-8")


def _words(graph: GraphProto) -> Iterator[str]:
    """Yield the names of a graph's values, tensors, nodes, operators and attributes."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield info.name
        yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)
    for tensor in _tensors(graph):
        yield tensor.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _check_opsets(imports: Iterable[OperatorSetIdProto]) -> None:
    """Check that imports name one version of every operator set, and of ONNX's own sets one that is known.

    A checker that does not know a version takes the newest one it knows, so what nodes mean would be a guess.
    """
    versions: dict[str, int] = {}
    for used in imports:
        name = used.domain or "ai.onnx"
        if name in versions:
            raise _Refused(f"the opset of {name!a:.80} is given twice")
        versions[name] = used.version
        last = _OPSETS.get(name)
        if last is not None and not 1 <= used.version <= last:
            raise _Refused(f"its opset of {name} is {used.version}, and {_known(1, last)}")


def _known(first: int, last: int) -> str:
    return f"onnx {onnx.__version__} knows {first} to {last}"


def _check_names(graph: GraphProto, outer: frozenset[str]) -> None:
    """Check that every value is made once, and that nodes take what is made before them or around, ``outer``."""
    stored = [*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer)]
    given = {info.name for info in graph.input}
    # Before IR version 4 initializers were inputs too.
    made = [*given, *(name for name in stored if name not in given)]
    made += [name for node in graph.node for name in node.output if name]
    if "" in stored or len(set(stored)) != len(stored) or len(set(made)) != len(made):
        twice = next((name for name, count in Counter(made).items() if count > 1), "")
        raise _Refused(f"the value {twice!a:.80} is made twice" if twice else "a tensor has no name of its own")
    known = {*outer, *given, *stored}
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise _Refused(f"the node {node.name!a:.80} takes {name!a:.80}, which nothing before it makes")
        for attribute in node.attribute:
            for nested in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_names(nested, frozenset(known))
        known.update(node.output)
    for info in graph.output:
        if info.name not in known:
            raise _Refused(f"nothing makes the output {info.name!a:.80}")


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse += [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                       *attribute.sparse_tensors]  # fmt: skip
    for entry in sparse:
        _elements(entry.dims, f"the sparse tensor '{entry.values.name!a:.80}'")
        yield from (entry.values, entry.indices)


def _check_type(info: onnx.ValueInfoProto) -> None:
    """Check the element type and the fixed axes of a graph's input, output or inner value."""
    tensor, what = info.type.tensor_type, f"the value {info.name!a:.80}"
    if tensor.elem_type not in _TYPES:
        raise _Refused(f"{what} has the unknown type {tensor.elem_type}")
    _elements([dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")], what)


def _check_tensor(tensor: TensorProto, path: Path, sizes: dict[str, int]) -> None:
    what = f"the tensor {tensor.name!a:.80}"
    if tensor.data_type not in _TYPES or tensor.data_type == TensorProto.UNDEFINED:
        raise _Refused(f"{what} has the unknown type {tensor.data_type}")
    elements = _elements(tensor.dims, what)
    if tensor.HasField("segment"):
        raise _Refused(f"{what} is stored in segments, which no runtime reads")
    filled = [field for field in _DATA_FIELDS if getattr(tensor, field)]
    if uses_external_data(tensor):
        if filled or tensor.data_type == TensorProto.STRING:
            raise _Refused(f"{what} has external data, and {filled[0] if filled else 'holds strings'}")
        _check_external(tensor, _bytes_of(tensor.data_type, elements), path, sizes, what)
        return
    if len(filled) > 1:
        raise _Refused(f"{what} has its data twice, as {filled[0]} and as {filled[1]}")
    field = filled[0] if filled else _TYPES[tensor.data_type]
    if field not in ("raw_data", _TYPES[tensor.data_type]):
        raise _Refused(f"{what} has its data as {field}, which its type does not use")
    held = len(getattr(tensor, field))
    raw = field == "raw_data"
    expected = _bytes_of(tensor.data_type, elements) if raw else _entries_of(tensor.data_type, elements)
    if held != expected or (raw and tensor.data_type == TensorProto.STRING):
        unit = "bytes" if raw else "values"
        raise _Refused(f"{what} of shape {_shape(tensor.dims)} has {held} {unit}, not {expected}")


def _check_external(tensor: TensorProto, expected: int, path: Path, sizes: dict[str, int], what: str) -> None:
    """Check that external data is a part of a regular file in the folder of ``path``; ``sizes`` keeps those known."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise _Refused(f"{what}: an entry of its external data is given twice")
    location = entries.get("location", "")
    if location not in sizes:
        sizes[location] = _file_size(location, path, what)
    offset = _count(entries.get("offset", "0"), f"{what}: the offset of its data")
    length = _count(entries.get("length", str(sizes[location] - offset)), f"{what}: the length of its data")
    if length != expected:
        raise _Refused(f"{what} of shape {_shape(tensor.dims)} has {length} bytes of external data, not {expected}")
    if not expected or offset + length > sizes[location]:
        raise _Refused(
            f"{what}: its data, {length} bytes from {offset}, is not inside '{location}' of {sizes[location]} bytes"
        )


def _file_size(location: str, path: Path, what: str) -> int:
    """Return the size of a file of external data, which neither its path nor a link may lead out of the folder."""
    named = f"{what}: its data is in {location!a:.80}"
    parts = PurePosixPath(location).parts
    if not parts or not location.isprintable() or location.startswith("/") or ".." in parts or "\\" in location:
        raise _Refused(f"{named}, which is no path in the folder of the graph")
    data = path.parent / location
    try:
        if not data.resolve().is_relative_to(path.parent.resolve()):
            raise _Refused(f"{named}, a link out of the folder of the graph")
        if not data.is_file():
            raise _Refused(f"{named}, which is missing")
        return data.stat().st_size
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, up to Python 3.12
        raise _Refused(f"{named}, which cannot be read") from error


def _count(text: str, what: str) -> int:
    """Return a decimal number as ONNX writes it; ``int`` would also take spaces, signs and underscores."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise _Refused(f"{what} is {text!a:.60}, which is no count of bytes")
    return int(text)


def _elements(dims: Sequence[int], what: str) -> int:
    """Return the number of elements of a shape."""
    if len(dims) > _MAX_RANK or any(dim < 0 for dim in dims):
        raise _Refused(f"{what} has the shape {_shape(dims)}, out of range")
    # Zeros would hide a dimension that overflows in a runtime's arithmetic.
    if math.prod(max(dim, 1) for dim in dims) > _MAX_ELEMENTS:
        raise _Refused(f"{what} has the shape {_shape(dims)}, more than {_MAX_ELEMENTS} elements")
    return math.prod(dims)


def _shape(dims: Sequence[int]) -> str:
    return f"{list(dims[:8])!s:.120}"


def _bytes_of(data_type: int, elements: int) -> int:
    """Return the packed size of a tensor in bytes; types below a byte share bytes."""
    return 0 if data_type == TensorProto.STRING else -(-elements * ir.DataType(data_type).bitwidth // 8)


def _entries_of(data_type: int, elements: int) -> int:
    """Return the number of entries of a typed field: complex numbers take two, types below a byte share one."""
    if data_type == TensorProto.STRING:
        return elements
    bits = ir.DataType(data_type).bitwidth
    if data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * elements
    return -(-elements * min(bits, 8) // 8) if bits < 8 else elements


#: The field of typed data of every type a tensor can have.
_TYPES: dict[int, str] = {
    kind: "string_data" if kind == TensorProto.STRING else onnx.helper.tensor_dtype_to_field(kind)
    for kind in TensorProto.DataType.values()
    if kind != TensorProto.UNDEFINED and kind in set(ir.DataType)  # one of the two may know newer types
} | {TensorProto.UNDEFINED: ""}
