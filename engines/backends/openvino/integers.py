"""Which integers of a graph OpenVINO would get wrong: its CPU plugin has 32 bits, and multiplies through float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import onnx

from graphs.base.errors import UgsepError

__all__ = ["check_integers"]

_EXACT = 1 << 24  # float32 holds every integer up to here
#: Ops on one tensor; their other inputs are shapes, axes and positions.
_MOVES_ONE = frozenset({
    "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Expand", "Tile", "Split",
    "Gather", "GatherElements", "GatherND",
})  # fmt: skip
_CHOOSES = frozenset({"Concat", "Where", "Min", "Max", "Clip", "ReduceMax", "ReduceMin", "Pad"})
_TESTS = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Shape", "Size", "OneHot"})
_STAYS_SMALL = frozenset({"Add", "Sub", "Neg", "Abs", "Div", "Mod"})
_INTEGERS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32})


class _Ids(NamedTuple):
    """Integers that come from an input; ``small`` if a table that looks them up has at most 2^24 rows."""

    input: str
    small: bool


def check_integers(graph: onnx.GraphProto) -> None:
    """Refuse a graph that computes with ids in a way that OpenVINO would round or cut, which no gate need notice.

    Ids that are only looked up, moved, compared or cast to floats may have 31 bits, which the runner checks. Ids of a
    table of up to 2^24 rows may also be added and divided.

    Raises:
        UgsepError: the integers of an input reach another op; names both.
    """
    for node, name in _rounded(graph.node, _ids_of_inputs(graph)):
        raise UgsepError(
            f"backend 'openvino' computes {node.op_type} of integers in 32 bits or in float32, which input '{name}' "
            "may exceed; use backend 'onnxruntime'"
        )


def _ids_of_inputs(graph: onnx.GraphProto) -> dict[str, _Ids]:
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    source = {i.name: i.name for i in graph.input if i.type.tensor_type.elem_type in _INTEGERS}
    inputs, bounds = set(source), dict.fromkeys(source, 1 << 62)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in rows:
            rows[node.output[0]] = rows[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in rows and node.input[1] in source:
            if all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis"):
                name = source[node.input[1]]
                bounds[name] = min(rows[node.input[0]], bounds[name])
        elif (node.op_type in _MOVES_ONE or _keeps_integers(node)) and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
    return {name: _Ids(name, bounds[name] <= _EXACT) for name in inputs}


def _rounded(nodes: Iterable[onnx.NodeProto], known: Mapping[str, _Ids]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield the nodes that OpenVINO computes wrongly, each with the input that may be too large."""
    found = dict(known)
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _rounded(attribute.g.node, found)
        one = node.op_type in _MOVES_ONE  # a lookup in a table gives no ids, whatever its indices are
        given = [found[name] for name in (node.input[:1] if one else node.input) if name in found]
        if not given or node.op_type in _TESTS or (node.op_type == "Cast" and not _keeps_integers(node)):
            continue
        widest = min(given, key=lambda ids: ids.small)
        if not (one or node.op_type in _CHOOSES or _keeps_integers(node)):
            if not (widest.small and node.op_type in _STAYS_SMALL):
                yield node, widest.input
        found.update(dict.fromkeys(node.output, widest))


def _keeps_integers(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i in _INTEGERS for a in node.attribute)
