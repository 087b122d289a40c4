"""The FP16-typed view of a graph: the same nodes, with casts only around what must stay FP32 for its range."""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatchcase

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export import names
from graphs.base.errors import UgsepError

# Element-wise operators join a region of FP32 when everything they compute on lies in it (mean + eps).
_FOLLOWERS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Abs", "Neg", "Exp", "Log", "Unsqueeze", "Squeeze"}
)


def to_half(model: onnx.ModelProto, keep_fp32: tuple[str, ...]) -> frozenset[str]:
    """Make a float32-typed graph FP16-typed in place and return the initializers whose data is now to be FP16.

    Inputs and outputs become FP16, integers stay. Nodes named by ``keep_fp32`` (op types, ``MatMul:activations``,
    globs of node names) and element-wise nodes between them compute in FP32.

    Raises:
        UgsepError: control flow, or a tensor whose type cannot be inferred.
    """
    graph = model.graph
    if any(a.type in (a.GRAPH, a.GRAPHS) for n in graph.node for a in n.attribute):
        raise UgsepError("the graph has control flow (If, Loop, Scan); an FP16 view needs a traced graph")
    _lift_constants(graph)
    _drop_casts_of_half_constants(graph)
    floats = _float_tensors(model)
    constants = {t.name: t for t in graph.initializer}
    kept = _kept_nodes(graph, keep_fp32, floats, set(constants))

    # Every float tensor t has up to two forms: "t" in FP16 and "t.fp32"; a cast makes the one that is missing.
    wanted: dict[str, set[bool]] = defaultdict(set)  # tensor -> {wide?}
    for index, node in enumerate(graph.node):
        for name in node.input:
            if name in floats:
                wanted[name].add(index in kept)
    for output in graph.output:
        if output.name in floats:
            wanted[output.name].add(False)

    narrow = _split_constants(graph, constants, floats, wanted)
    nodes: list[NodeProto] = []
    for value in graph.input:
        if value.name in floats and True in wanted[value.name]:
            nodes.append(_cast(value.name, wide=True))
    for index, node in enumerate(graph.node):
        wide = index in kept
        for position, name in enumerate(node.input):
            if name in floats and wide and not (name in constants and wanted[name] == {True}):
                node.input[position] = names.derived(name, "fp32")
        made = [o for o in node.output if o in floats]
        for position, name in enumerate(node.output):
            if name in floats and wide:
                node.output[position] = names.derived(name, "fp32")
        if not wide:
            _narrow_attributes(node)
        nodes.append(node)
        nodes += [_cast(name, wide=not wide) for name in made if (not wide) in wanted[name]]
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for value in (*graph.input, *graph.output):
        if value.name in floats:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del graph.value_info[:]  # its types are those of the float32 graph
    return narrow


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers, so that there is one kind of constant."""
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = TensorProto.FromString(value.t.SerializeToString())
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False).graph
    types = {t.name: t.data_type for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in inferred.node:
        for name in node.output:
            if name and types.get(name, TensorProto.UNDEFINED) == TensorProto.UNDEFINED:
                raise UgsepError(f"the type of '{name}' ({node.op_type}) cannot be inferred; use default-domain ops")
    return {name for name, data_type in types.items() if data_type == TensorProto.FLOAT}


def _kept_nodes(graph: onnx.GraphProto, patterns: tuple[str, ...], floats: set[str], constants: set[str]) -> set[int]:
    kept: set[int] = set()
    wide: set[str] = set()
    decoded = {o for n in graph.node if n.op_type in ("DequantizeLinear", "Cast") for o in n.output}
    for index, node in enumerate(graph.node):
        known_as = [node.op_type, *([node.name] if node.name else [])]
        if node.op_type == "MatMul" and not {*node.input} & (constants | decoded):
            known_as.append("MatMul:activations")
        dynamic = [n for n in node.input if n in floats and n not in constants]
        follows = node.op_type in _FOLLOWERS and dynamic and all(n in wide for n in dynamic)
        named = any(fnmatchcase(name, pattern) for name in known_as for pattern in patterns)
        if node.op_type != "DequantizeLinear" and (follows or named):
            kept.add(index)
            wide.update(o for o in node.output if o in floats)
    return kept


def _drop_casts_of_half_constants(graph: onnx.GraphProto) -> None:
    """Let MatMul read FP16 constants directly: the cast of the FP32-typed view does nothing here."""
    halves = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
    alias = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast" and n.input[0] in halves}
    elsewhere = {i for n in graph.node if n.op_type != "MatMul" for i in n.input}
    alias = {name: constant for name, constant in alias.items() if name not in elsewhere}
    kept = [NodeProto.FromString(n.SerializeToString()) for n in graph.node if n.output[0] not in alias]
    for node in kept:
        for position, name in enumerate(node.input):
            node.input[position] = alias.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


def _split_constants(
    graph: onnx.GraphProto,
    constants: dict[str, TensorProto],
    floats: set[str],
    wanted: dict[str, set[bool]],
) -> frozenset[str]:
    """Leave constants that only FP32 nodes read, copy those that both kinds read; return those to narrow."""
    narrow = set()
    for name, tensor in constants.items():
        if name not in floats or wanted[name] == {True}:
            continue
        narrow.add(name)
        if True in wanted[name]:
            copy = TensorProto.FromString(tensor.SerializeToString())
            copy.name = names.derived(name, "fp32")
            graph.initializer.append(copy)
    return frozenset(narrow)


def _narrow_attributes(node: NodeProto) -> None:
    """Let a node that names its own output type name FP16."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t)
            attribute.t.CopyFrom(numpy_helper.from_array(values.astype("float16"), attribute.t.name))


def _cast(name: str, wide: bool) -> NodeProto:
    other = names.derived(name, "fp32")
    if wide:
        return helper.make_node("Cast", [name], [other], name=names.step_node(name, "to_fp32"), to=TensorProto.FLOAT)
    return helper.make_node("Cast", [other], [name], name=names.step_node(name, "to_fp16"), to=TensorProto.FLOAT16)
