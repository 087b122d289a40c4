"""The FP16-typed view of a graph: the same nodes, with casts only around what must stay FP32 for its range.

The converter in ``export.lowering.tensorrt`` is another: its graphs are FP16 throughout, since TensorRT itself keeps
in FP32 what needs the range.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from export import names
from graphs.base.errors import UgsepError, first_line, printable_line
from quant.graph.gemms import ONNX_DOMAINS, name_of, tensor_of

# Element-wise operators join a region of FP32 if everything they compute on lies in it (mean + eps).
_FOLLOWERS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Abs", "Neg", "Exp", "Log", "Unsqueeze", "Squeeze"}
)


def to_fp16_view(model: ir.Model, keep_fp32: tuple[str, ...], source: str) -> frozenset[str]:
    """Make a float32-typed graph FP16-typed in place and return the initializers to be narrowed to FP16.

    Inputs and outputs become FP16, integers stay. Nodes named by ``keep_fp32`` (op types, ``MatMul:activations``,
    globs of node names) and element-wise nodes between them compute in FP32. ``source`` names the graph in messages.

    Raises:
        UgsepError: control flow, or a tensor whose type cannot be inferred.
    """
    graph = model.graph
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for n in graph for a in n.attributes.values()):
        raise UgsepError(f"{source} has control flow (If, Loop, Scan); an FP16 view needs a traced graph")
    common.LiftConstantsToInitializersPass(size_limit=0)(model)
    _drop_casts_of_fp16_constants(graph)
    floats = _float_values(model, source)
    kept = _kept_nodes(graph, keep_fp32, floats)

    # A float value is read in up to two types, FP16 and FP32; a cast makes the one that its producer does not.
    wanted: dict[ir.Value, set[bool]] = defaultdict(set)  # value -> {wide?}
    for node in graph:
        for value in floats.intersection(v for v in node.inputs if v is not None):
            wanted[value].add(node in kept)
    for value in floats.intersection(graph.outputs):
        wanted[value].add(False)

    wide, narrowed = _constants_by_type(graph, floats, wanted)
    fp16: dict[ir.Value, ir.Value] = {}
    casts = {v: _cast(v, name_of(v), wide=True) for v in graph.inputs if True in wanted.get(v, ())}
    wide.update({value: cast.outputs[0] for value, cast in casts.items()})
    for node in list(graph):
        in_fp32 = node in kept
        for position, read in enumerate(node.inputs):
            if read in floats:
                node.replace_input_with(position, (wide if in_fp32 else fp16).get(read, read))
        if not in_fp32:
            _narrow_attributes(node)
        after = []
        for value in node.outputs:
            if value not in floats:
                continue
            name = name_of(value)
            if in_fp32:
                value.name = names.derived(name, "fp32")
            if (not in_fp32) in wanted[value]:
                after.append(_cast(value, name, wide=not in_fp32))
                (fp16 if in_fp32 else wide)[value] = after[-1].outputs[0]
        graph.insert_after(node, after)
    graph.insert_before(graph[0], casts.values())
    _retype(graph, floats, fp16)
    return narrowed


def _drop_casts_of_fp16_constants(graph: ir.Graph) -> None:
    """Let MatMul read FP16 constants directly; only the FP32-typed view needs the cast."""
    for node in list(graph):
        read = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
        if read is None or not read.is_initializer() or tensor_of(read).dtype != ir.DataType.FLOAT16:
            continue
        output = node.outputs[0]
        if not output.is_graph_output() and all(user.op_type == "MatMul" for user, _ in output.uses()):
            output.replace_all_uses_with(read)
            graph.remove(node, safe=True)


def _float_values(model: ir.Model, source: str) -> set[ir.Value]:
    try:
        proto = ir.to_proto(model)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False).graph
    except Exception as error:  # onnx_ir and onnx raise many classes for a graph that contradicts itself
        reason = printable_line(first_line(error))
        raise UgsepError(f"{source}: its types cannot be inferred ({reason:.200}); export the model again") from error
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    found: set[ir.Value] = set()
    for value in _values(model.graph):
        known = types.get(name_of(value), ir.DataType.UNDEFINED)
        if value.is_initializer():
            known = tensor_of(value).dtype
        if known == ir.DataType.FLOAT:
            found.add(value)
        if known == ir.DataType.UNDEFINED and (node := value.producer()) is not None:
            fix = "export the model again" if node.domain in ONNX_DOMAINS else "use default-domain ops"
            raise UgsepError(f"{source}: the type of '{value.name}' ({node.op_type}) cannot be inferred; {fix}")
    return found


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    """Yield the inputs, the initializers and the outputs of all nodes."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _kept_nodes(graph: ir.Graph, patterns: tuple[str, ...], floats: set[ir.Value]) -> set[ir.Node]:
    kept: set[ir.Node] = set()
    wide: set[ir.Value] = set()
    for node in graph:
        known_as = [node.op_type, *([node.name] if node.name else [])]
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type == "MatMul" and not any(_is_weight(v) for v in inputs):
            known_as.append("MatMul:activations")
        dynamic = [v for v in inputs if v in floats and not v.is_initializer()]
        follows = node.op_type in _FOLLOWERS and dynamic and wide.issuperset(dynamic)
        named = any(fnmatchcase(name, pattern) for name in known_as for pattern in patterns)
        if node.op_type != "DequantizeLinear" and (follows or named):
            kept.add(node)
            wide.update(floats.intersection(node.outputs))
    return kept


def _is_weight(value: ir.Value) -> bool:
    node = value.producer()
    return value.is_initializer() or (node is not None and node.op_type in ("DequantizeLinear", "Cast"))


def _constants_by_type(
    graph: ir.Graph, floats: set[ir.Value], wanted: dict[ir.Value, set[bool]]
) -> tuple[dict[ir.Value, ir.Value], frozenset[str]]:
    """Copy the constants that FP16 and FP32 nodes read; return the copies, and the names of those to narrow.

    Constants that only FP32 nodes read stay as they are.
    """
    copies: dict[ir.Value, ir.Value] = {}
    narrowed = set()
    for value in list(graph.initializers.values()):
        if value not in floats or wanted[value] == {True}:
            continue
        narrowed.add(name_of(value))
        if True in wanted[value]:
            copies[value] = ir.Value(name=names.derived(name_of(value), "fp32"), const_value=value.const_value)
            graph.register_initializer(copies[value])
    return copies, frozenset(narrowed)


def _narrow_attributes(node: ir.Node) -> None:
    """Change FP32 to FP16 in attributes that set a node's output type."""
    for name in ("to", "dtype", "output_dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.value == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT16)
    constant = node.attributes.get("value")
    if constant is None or constant.type != ir.AttributeType.TENSOR:
        return
    value = constant.as_tensor()
    if value.dtype == ir.DataType.FLOAT:
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(value.numpy().astype("float16"), name=value.name))


def _cast(value: ir.Value, name: str, wide: bool) -> ir.Node:
    """Return a cast of a value whose FP16 version is called ``name``."""
    if wide:
        to, step, output = ir.DataType.FLOAT, names.step_node(name, "to_fp32"), names.derived(name, "fp32")
    else:
        to, step, output = ir.DataType.FLOAT16, names.step_node(name, "to_fp16"), name
    return ir.node("Cast", [value], {"to": to}, name=step, outputs=[ir.Value(name=output)])


def _retype(graph: ir.Graph, floats: set[ir.Value], fp16: dict[ir.Value, ir.Value]) -> None:
    """Declare inputs and outputs as FP16 and drop all other declarations, which are of the float32 graph."""
    ends = {*graph.inputs}
    for index, value in enumerate(graph.outputs):
        output = fp16.get(value, value)
        output.shape, output.type = value.shape, value.type
        graph.outputs[index] = output
        ends.add(output)
    for value in _values(graph):
        if value not in ends:
            value.type = value.shape = None
        elif value in floats or value in fp16.values():
            value.type = ir.TensorType(ir.DataType.FLOAT16)
