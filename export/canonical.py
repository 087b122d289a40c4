"""Bring an exported graph to the canonical form every later step relies on (docs/architecture.md, ONNX files).

Dense weights become ``MatMul(x, W)`` with ``W`` an initializer [K, N], plus ``Add`` for the bias; a reciprocal square
root becomes a division, which is the RMSNorm that runtimes recognise; shape arithmetic is folded away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxscript.optimizer
import onnxscript.rewriter
from onnxscript.rewriter.rules.common import no_op_cast_rule

from export import names
from export.weights.placeholders import transposed


def canonicalize(model: ir.Model) -> None:
    """Rewrite ``model`` in place; initializer names stay the parameters' own names."""
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _gemm_to_matmul(model.graph, node)
    for node in list(model.graph):
        if node.op_type == "Transpose":
            _transpose_weight(model.graph, node)
    for node in list(model.graph):
        if node.op_type == "Mul":
            _reciprocal_to_division(model.graph, node)
    # Weights are left alone (no folding of large constants): their names and bytes are the contract.
    onnxscript.optimizer.fold_constants(model, input_size_limit=1024, output_size_limit=1024)
    common.CommonSubexpressionEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _reshape_by_constant(model.graph, node)
            _drop_vector_reshape(model.graph, node)
    for node in model.graph:
        if node.op_type == "Split":  # folded from the exporter's SplitToSequence, without types: outputs need them
            _type_pieces(node)
    for node in list(model.graph):
        if node.op_type == "Slice":
            _drop_whole_slice(model.graph, node)
    for node in list(model.graph):
        if node.op_type in _KEEP_ORDER:
            _skip_to_same_shape(node)
    onnxscript.rewriter.rewrite(model, pattern_rewrite_rules=[no_op_cast_rule])
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.TopologicalSortPass()(model)


def _initializer(value: ir.Value | None) -> ir.Value | None:
    return value if value is not None and value.is_initializer() else None


def _transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """Return the initializer ``weight`` [N, K] laid out as [K, N], under the same name.

    A weight used in both layouts keeps its name for the [K, N] one; the other is renamed ``<name>.T``.
    """
    assert weight.const_value is not None
    assert weight.name is not None
    name = weight.name
    plain = names.without(name, "T")
    if weight.meta.get("transposed") is not None:
        existing: ir.Value = weight.meta["transposed"]
        return existing
    del graph.initializers[name]
    weight.name = names.derived(plain, "T")
    graph.initializers[weight.name] = weight
    tensor: ir.TensorProtocol | None = transposed(weight.const_value, plain)
    if tensor is None:
        tensor = ir.Tensor(np.ascontiguousarray(weight.const_value.numpy().T), name=plain)
    new = ir.Value(name=plain, shape=ir.Shape(tensor.shape.numpy()), type=weight.type, const_value=tensor)
    graph.initializers[plain] = new
    weight.meta["transposed"] = new
    return new


def _gemm_to_matmul(graph: ir.Graph, node: ir.Node) -> None:
    attributes = {k: node.attributes[k].value if k in node.attributes else d for k, d in _GEMM_DEFAULTS.items()}
    weight = _initializer(node.inputs[1])
    scaled = attributes["alpha"] != 1.0 or attributes["beta"] != 1.0
    if weight is None or scaled or attributes["transA"]:
        return
    layout = _transposed(graph, weight) if attributes["transB"] else weight
    output = node.outputs[0]
    product = ir.node("MatMul", [node.inputs[0], layout])
    product.outputs[0].shape, product.outputs[0].type = output.shape, output.type
    product.outputs[0].name = names.derived(output.name, "product")
    nodes = [product]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(ir.node("Add", [product.outputs[0], node.inputs[2]]))
        nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = output.shape, output.type
    _replace(graph, node, nodes)


_GEMM_DEFAULTS: dict[str, float | int] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def _transpose_weight(graph: ir.Graph, node: ir.Node) -> None:
    weight = _initializer(node.inputs[0])
    if weight is None or weight.shape is None or len(weight.shape) != 2 or node.outputs[0].is_graph_output():
        return
    perm = node.attributes.get("perm")
    stays = perm is not None and [axis % 2 for axis in perm.as_ints()] == [0, 1]  # tensordot and einsum write such
    layout = weight if stays else _transposed(graph, weight)
    for user, index in list(node.outputs[0].uses()):
        user.replace_input_with(index, layout)
    graph.remove(node, safe=True)
    if not weight.uses() and weight.name is not None and weight.name in graph.initializers:
        del graph.initializers[weight.name]


def _reciprocal_to_division(graph: ir.Graph, node: ir.Node) -> None:
    for index in (0, 1):
        value = node.inputs[index]
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Reciprocal":
            division = ir.node("Div", [node.inputs[1 - index], producer.inputs[0]])
            output = node.outputs[0]
            division.outputs[0].shape, division.outputs[0].type = output.shape, output.type
            _replace(graph, node, [division])
            return


def _reshape_by_constant(graph: ir.Graph, node: ir.Node) -> None:
    """Let a reshape compute its only dynamic axis (-1), instead of reading a shape assembled for it.

    Unlike onnxscript's MaterializeReshapeShape: one initializer per shape, no allowzero, and no static shapes.
    """
    shape, wanted = node.outputs[0].shape, node.inputs[1]
    if shape is None or _initializer(wanted) is not None:
        return
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) != 1 or 0 in sizes:
        return
    name = names.shape(sizes)
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(sizes, np.int64), name=name)
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape([len(sizes)]), type=kind)
        graph.register_initializer(value)
    node.replace_input_with(1, graph.initializers[name])


def _drop_vector_reshape(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a reshape of a vector to a vector."""
    source, wanted, out = node.inputs[0], node.inputs[1], node.outputs[0]
    target = wanted.const_value if wanted is not None else None
    if source is None or source.shape is None or len(source.shape) != 1 or out.is_graph_output():
        return
    if target is not None and target.numpy().tolist() == [-1]:
        ir.convenience.replace_all_uses_with(out, source)
        graph.remove(node, safe=True)


def _type_pieces(node: ir.Node) -> None:
    """Give the outputs of a split the type of its input, and their shapes where the sizes are constants."""
    source = node.inputs[0]
    given = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if source is None:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    whole, count = None if source.shape is None else source.shape[axis], len(node.outputs)
    if given is not None:
        sizes = given.numpy().tolist()
    else:
        sizes = [whole // count if isinstance(whole, int) and whole % count == 0 else None] * count
    for out, size in zip(node.outputs, sizes, strict=True):
        out.type = out.type or source.type
        if out.shape is None and source.shape is not None and size is not None:
            dims = list(source.shape)
            dims[axis] = size
            out.shape = ir.Shape(dims)


def _drop_whole_slice(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a slice that takes all of every axis, as ``unbind`` of an axis of one leaves it."""
    source, out = node.inputs[0], node.outputs[0]
    given = [None if value is None else value.const_value for value in node.inputs[1:]]
    if source is None or source.shape is None or len(given) < 3 or out.is_graph_output() or None in given:
        return
    starts, ends, axes, *steps = [tensor.numpy().tolist() for tensor in given if tensor is not None]
    for start, end, axis, step in zip(starts, ends, axes, *steps or [[1] * len(axes)], strict=True):
        size = source.shape[axis]
        if not isinstance(size, int) or start not in (0, -size) or end < size or step != 1:
            return
    ir.convenience.replace_all_uses_with(out, source)
    graph.remove(node, safe=True)


#: Ops that only name the axes anew: equal shapes before and after a chain of them mean equal values.
_KEEP_ORDER = frozenset({"Reshape", "Squeeze", "Unsqueeze"})


def _skip_to_same_shape(node: ir.Node) -> None:
    """Let the readers of a reshape read the value of that shape which it was made from, if there is one."""
    out, value = node.outputs[0], node.inputs[0]
    if out.is_graph_output() or not _is_known(out.shape):
        return
    found = None
    while value is not None:
        if value.shape == out.shape:
            found = value
        maker = value.producer()
        value = maker.inputs[0] if maker is not None and maker.op_type in _KEEP_ORDER else None
    if found is not None:
        ir.convenience.replace_all_uses_with(out, found)


def _is_known(shape: ir.Shape | None) -> bool:
    """Check that every axis has a size or a name; two without a name need not be equal."""
    return shape is not None and all(isinstance(dim, int) or dim.value is not None for dim in shape)


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Replace ``node`` by ``nodes``; the last one takes over its output and name."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])
