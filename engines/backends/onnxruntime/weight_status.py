"""Read ONNX Runtime's optimised graph: how it runs each weight of the graph we gave it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import onnx
from onnx import numpy_helper

from engines.backends.built_engine import EngineWeight, WeightStatus
from engines.backends.contract import Array
from engines.backends.engine_spec import BuildSpec
from export import names
from export.lowering import LoweredGraph
from graphs.base.errors import UgsepError

#: The statuses each precision allows for a weight that is a matrix operand.
WANTED: dict[str, frozenset[WeightStatus]] = {
    "fp32": frozenset({"float"}),
    "fp16": frozenset({"float"}),
    "w8a32": frozenset({"folded-to-float", "gathered-int8", "float"}),
    "w8a16": frozenset({"folded-to-float", "gathered-int8", "float"}),
    "w8a8-dynamic": frozenset({"fused-int8", "gathered-int8", "float"}),
    "w8a8-static": frozenset({"fused-int8", "gathered-int8", "float"}),
}
_GEMMS = frozenset({"MatMul", "Gemm", "FusedGemm", "FusedMatMul", "MatMulNBits", "MatMulIntegerToFloat"})
#: What the runtime appends to the name of an int8 weight it keeps as uint8, on CPUs without an int8 dot product.
_AS_UINT8 = "_s8_2_u8"
#: Up to this size ONNX Runtime keeps one of several constants of equal values, under the name of any of them.
_MERGED_ELEMENTS = 8


def weight_statuses(
    original: onnx.ModelProto, lowered: onnx.ModelProto, compiled: onnx.ModelProto, record: LoweredGraph
) -> tuple[EngineWeight, ...]:
    """Return one status per int8 weight and per float MatMul weight of the original graph.

    ``original`` is the canonical graph, ``lowered`` the one we gave the runtime (``record`` says how it was
    made), ``compiled`` the one the runtime optimised it to. A weight cut by token has the worst of its statuses.
    """
    dequantized = {node.input[0]: node.output[0] for node in lowered.graph.node if node.op_type == "DequantizeLinear"}
    at_run = {name for node in compiled.graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    users = {name: node.op_type for node in compiled.graph.node if node.op_type in _GEMMS for name in node.input}
    for equal in _merged(lowered):
        if kept := [users[name] for name in equal if name in users]:
            users |= dict.fromkeys(equal, kept[0])
    statuses: list[EngineWeight] = []
    for name, is_int8 in _weights(original):
        parts = record.parts.get(name, (name,))
        found: set[tuple[WeightStatus, str]] = set()
        for part in parts:
            if name in record.gathered:
                found.add(("gathered-int8", "Gather"))
            elif part in at_run:
                found.add(("dequantized-each-run", "DequantizeLinear"))
            elif users.get(names.derived(part, "blocks")) == "MatMulNBits":
                found.add(("fused-int8", "MatMulNBits"))
            elif "MatMulIntegerToFloat" in (users.get(part), users.get(f"{part}{_AS_UINT8}")):
                calibrated = ", calibrated" if name in record.calibrated else ""
                found.add(("fused-int8", f"MatMulIntegerToFloat{calibrated}"))
            elif is_int8 and dequantized.get(part, part) in users:
                found.add(("folded-to-float", users[dequantized.get(part, part)]))
            elif not is_int8 and part in users:
                found.add(("float", users[part]))
            else:
                found.add(("missing", "in no GEMM of the optimised graph"))
        order: list[WeightStatus] = [
            "missing",
            "dequantized-each-run",
            "folded-to-float",
            "gathered-int8",
            "fused-int8",
            "float",
        ]
        status, node = min(found, key=lambda item: order.index(item[0]))
        statuses.append(EngineWeight(name, status, f"{len(parts)} x {node}" if len(parts) > 1 else node))
    return tuple(statuses)


def _merged(graph: onnx.ModelProto) -> Iterator[tuple[str, ...]]:
    """Yield the names of small constants that are equal, as stored or as dequantized."""
    small = {
        t.name: numpy_helper.to_array(t) for t in graph.graph.initializer if math.prod(t.dims) <= _MERGED_ELEMENTS
    }
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and {node.input[0], node.input[1]} <= small.keys():
            small[node.output[0]] = _dequantized(node, small[node.input[0]], small[node.input[1]])
    groups: dict[tuple[str, tuple[int, ...], bytes], list[str]] = defaultdict(list)
    for name, values in small.items():
        groups[values.dtype.name, values.shape, values.tobytes()].append(name)
    yield from (tuple(equal) for equal in groups.values() if len(equal) > 1)


def _dequantized(node: onnx.NodeProto, values: Array, scale: Array) -> Array:
    attributes = {a.name: a.i for a in node.attribute}
    axis = attributes.get("axis", 1)
    if scale.ndim == values.ndim:
        scale = scale.repeat(attributes.get("block_size", 1), axis)
    elif scale.ndim == 1:
        scale = scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return values * scale


def check_weight_statuses(spec: BuildSpec, statuses: tuple[EngineWeight, ...]) -> None:
    """Refuse an engine whose weights do not run as its precision is named.

    Raises:
        UgsepError: names up to three of them, with their statuses.
    """
    wrong = [f for f in statuses if f.status not in WANTED[spec.precision]]
    if wrong:
        listed = ", ".join(f"{f.name} ({f.status})" for f in wrong[:3])
        raise UgsepError(
            f"{spec.onnx}: {len(wrong)} weights do not run as {spec.precision}: {listed}; "
            "quantize the graph again in the canonical form, or choose another precision"
        )


def _weights(original: onnx.ModelProto) -> Iterator[tuple[str, bool]]:
    """Names of the constant weights of the graph, int8 ones first, each with whether it is int8."""
    initializers = {tensor.name for tensor in original.graph.initializer}
    int8 = [node.input[0] for node in original.graph.node if node.op_type == "DequantizeLinear"]
    floats = [name for node in original.graph.node if node.op_type == "MatMul" for name in node.input]
    yield from ((name, True) for name in dict.fromkeys(int8) if name in initializers)
    yield from ((name, False) for name in dict.fromkeys(floats) if name in initializers)
