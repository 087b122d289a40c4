"""GEMMs per feature token for CPUs: MatMul by stacked [T, K, N] weights becomes one 2-D MatMul per feature token.

A value whose token slices are known as 2-D tensors is carried as a list of slices through the GEMMs and the
element-wise operators between them, so that a whole feed-forward chain stays sliced. After the last GEMM it is
stacked again, except for its bias, which the runtime fuses into the GEMM: what follows is then one node instead of
one per feature token, and norms keep the form that the runtime fuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import add_initializer, add_node, constant, fp16_weight, int8_weight, ints, rank, take_over
from export.lowering.passes import Lowering, Pass

UNARY = frozenset(
    "Abs Celu Cast Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal Relu Selu "
    "Sigmoid Softplus Softsign Sqrt Tanh".split()
)
BINARY = frozenset("Add Div Max Min Mul Pow Sub".split())

Parts = tuple[ir.Value, ...]


@dataclass
class _Tokens:
    """What is known while walking the graph, node by node in topological order.

    ``computed``: stacked value -> its slices, made by this pass. ``split``: existing value -> its slices.
    ``weights``: stacked weight -> its columns. ``stacked``: values of ``computed`` that were stacked again.
    """

    graph: ir.Graph
    min_elements: int
    held: dict[str, tuple[str, ...]]
    computed: dict[ir.Value, Parts] = field(default_factory=dict)
    split: dict[ir.Value, Parts] = field(default_factory=dict)
    weights: dict[ir.Value, Parts] = field(default_factory=dict)
    stacked: set[ir.Value] = field(default_factory=set)

    def known(self, value: ir.Value) -> Parts | None:
        """Return the slices of a value if they exist already."""
        return self.computed.get(value) or self.split.get(value)


def unstack_tokens(lowering: Lowering) -> None:
    """Rewrite every MatMul with a constant [T, K, N] right operand.

    MatMul(x [T, M, K], W [T, K, N]) becomes T times MatMul(x_t [M, K], W_t [K, N]). W is an initializer, the
    Cast of an FP16 one, or the DequantizeLinear of an int8 one with one scale per column ([T, 1, N], block_size K).
    A MatMul stays as it is if its left operand has no known rank, or if it has fewer than ``min_token_elements``
    weights per feature token. Numerics: the same products and sums, in the runtime's order.
    """
    graph = lowering.graph
    tokens = _Tokens(graph, lowering.min_token_elements, lowering.parts)
    stay_cut = _between_gemms(tokens)
    for node in list(graph):
        made = _gemms(tokens, node) or (_elementwise(tokens, node) if node.outputs[0] in stay_cut else None)
        if made:
            tokens.computed[node.outputs[0]] = made
        elif _swaps_rows_and_tokens(node) and node.inputs[0] in tokens.computed:
            _restack(tokens, node.outputs[0], tokens.computed[node.inputs[0]], axis=1)
        else:
            for value in node.inputs:
                _stack(tokens, value)
    for value in list(graph.outputs):
        _stack(tokens, value)


UNSTACK_TOKENS = Pass("unstack feature tokens", unstack_tokens)


def _gemms(tokens: _Tokens, node: ir.Node) -> Parts | None:
    if node.op_type != "MatMul":
        return None
    x, w = node.inputs
    if x is None or w is None or rank(w) != 3 or rank(x) not in (2, 3):
        return None
    if _elements_per_token(w) < tokens.min_elements or _width(node.outputs[0]) is None:
        return None
    columns = tokens.weights.get(w) or _cut_weight(tokens, node, w)
    if columns is None:
        return None
    tokens.weights[w] = columns
    rows = _token_rows(tokens, node, x, len(columns))
    if rows is None:
        return None
    out = node.outputs[0]
    return tuple(
        add_node(node, "MatMul", [row, column], name=names.sliced(out.name, t))
        for t, (row, column) in enumerate(zip(rows, columns, strict=True))
    )


def _elements_per_token(w: ir.Value) -> int:
    _, k, n = w.shape or (0, 0, 0)
    return k * n if isinstance(k, int) and isinstance(n, int) else 0


def _cut_weight(tokens: _Tokens, node: ir.Node, w: ir.Value) -> Parts | None:
    """Cut W [T, K, N] in T times [K, N]; slices are views of the file, nothing is copied before the save."""
    whole = constant(w)
    if whole is not None:
        cut = tuple(add_initializer(tokens.graph, names.sliced(w.name, t), part) for t, part in enumerate(whole))
        tokens.held[str(w.name)] = tuple(str(value.name) for value in cut)
        return cut
    fp16 = fp16_weight(w)
    if fp16 is not None:
        stored, values = fp16
        narrow = tuple(
            add_initializer(tokens.graph, names.sliced(stored.name, t), part) for t, part in enumerate(values)
        )
        tokens.held[str(stored.name)] = tuple(str(value.name) for value in narrow)
        return tuple(_cast(node, value, name=names.sliced(w.name, t), like=w) for t, value in enumerate(narrow))
    int8 = int8_weight(w)
    if int8 is None or int8.axis not in (1, -2):
        return None
    if int8.q.ndim != 3 or int8.s.shape != (int8.q.shape[0], 1, int8.q.shape[2]):
        return None
    dequantized: list[ir.Value] = []
    quantized: list[ir.Value] = []
    for t in range(int8.q.shape[0]):
        q = add_initializer(tokens.graph, names.sliced(int8.values.name, t), int8.q[t])
        s = add_initializer(tokens.graph, names.sliced(int8.scale.name, t), int8.s[t, 0])
        column = add_node(node, "DequantizeLinear", [q, s], {"axis": 1}, name=names.sliced(w.name, t), like=s)
        column.shape = q.shape
        dequantized.append(column)
        quantized.append(q)
    tokens.held[str(int8.values.name)] = tuple(str(q.name) for q in quantized)
    return tuple(dequantized)


def _cast(node: ir.Node, value: ir.Value, *, name: str, like: ir.Value) -> ir.Value:
    wide = add_node(node, "Cast", [value], {"to": ir.DataType.FLOAT}, name=name, like=like)
    wide.shape = value.shape
    return wide


def _token_rows(tokens: _Tokens, node: ir.Node, x: ir.Value, count: int) -> Parts | None:
    """Return x as T values [M, K]: known slices or a Split, taken before a Transpose([1, 0, 2]) if there is one."""
    known = tokens.known(x)
    if known is not None:
        return known if len(known) == count else None
    if rank(x) == 2:  # broadcast: every token reads the same rows
        return (x,) * count
    assert x.shape is not None
    if x.shape[0] == 1 and count > 1:
        return _squeeze(tokens, node, (x,), 0, names.derived(x.name, "row")) * count
    if x.shape[0] != count:
        return None
    source, axis = x, 0
    transpose = x.producer()
    if transpose is not None and _swaps_rows_and_tokens(transpose) and transpose.inputs[0] is not None:
        source, axis = transpose.inputs[0], 1
    inputs = _concatenated(source, axis, count)
    if inputs is not None:
        tokens.split[x] = _squeeze(tokens, node, inputs, axis, names.derived(x.name, "token"))
    elif count == 1:
        tokens.split[x] = _squeeze(tokens, node, (source,), axis, names.derived(x.name, "token"))
    else:
        width = _width(x)
        if width is None:
            return None
        tokens.split[x] = _split(tokens, node, source, axis, count, width, names.derived(x.name, "token"))
    return tokens.split[x]


def _concatenated(value: ir.Value, axis: int, count: int) -> Parts | None:
    """Return the inputs of the Concat that made the value if each is one feature token: cancels Split(Concat)."""
    concat = value.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != count:
        return None
    if ints(concat, "axis", 0) not in (axis, axis - 3):
        return None
    inputs = tuple(value for value in concat.inputs if value is not None)
    if all(value.shape is not None and len(value.shape) == 3 and value.shape[axis] == 1 for value in inputs):
        return inputs
    return None


def _split(tokens: _Tokens, node: ir.Node, source: ir.Value, axis: int, count: int, width: int, name: str) -> Parts:
    """Cut [T, M, K] (axis 0) or [M, T, K] (axis 1) into T values [M, K], as a matrix: slices have no axis to drop."""
    flat = _reshape(
        tokens.graph, node, source, (-1, width if axis == 0 else count * width), names.derived(name, "flat")
    )
    split = ir.node("Split", [flat], {"axis": axis, "num_outputs": count}, num_outputs=count)
    for t, value in enumerate(split.outputs):
        value.name = names.sliced(name, t)
        value.type = source.type
    node.prepend(split)
    return tuple(split.outputs)


def _reshape(graph: ir.Graph, node: ir.Node, value: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
    sizes = "x".join(map(str, shape)).replace("-1", "rows")
    constant_shape = add_initializer(graph, names.shared("shape", sizes), np.array(shape, dtype=np.int64))
    out = add_node(node, "Reshape", [value, constant_shape], name=name)
    out.shape = ir.Shape([None if size == -1 else size for size in shape])
    return out


def _width(value: ir.Value) -> int | None:
    """Return the size of the last axis if it is known."""
    last = None if value.shape is None or len(value.shape) == 0 else value.shape[-1]
    return last if isinstance(last, int) else None


def _swaps_rows_and_tokens(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and perm is not None and tuple(perm.as_ints()) == (1, 0, 2)


def _squeeze(tokens: _Tokens, node: ir.Node, values: Parts, axis: int, name: str) -> Parts:
    axes = _axes(tokens.graph, axis)
    return tuple(add_node(node, "Squeeze", [v, axes], name=names.sliced(name, t)) for t, v in enumerate(values))


def _axes(graph: ir.Graph, axis: int) -> ir.Value:
    return add_initializer(graph, names.shared("axes", axis), np.array([axis], dtype=np.int64))


def _between_gemms(tokens: _Tokens) -> set[ir.Value]:
    """Return the values to compute per feature token: those that lead from one sliced GEMM to another.

    A constant added to a GEMM's product counts too: it is a bias.
    """
    there: set[ir.Value] = set()  # known per feature token
    cut: set[ir.Value] = set()  # those of them that nodes can compute per feature token
    biased: set[ir.Value] = set()
    nodes = list(tokens.graph)
    for node in nodes:
        if _is_token_gemm(tokens, node):
            there.update(value for value in (node.inputs[0], node.outputs[0]) if value is not None)
        elif _is_elementwise(node) and any(value in there for value in node.inputs):
            if all(value in there or constant(value) is not None or _is_matrix(value) for value in node.inputs):
                there.add(node.outputs[0])
                cut.add(node.outputs[0])
            if node.op_type == "Add" and any(constant(value) is not None for value in node.inputs):
                biased.add(node.outputs[0])
    wanted: set[ir.Value] = set()
    for node in reversed(nodes):
        out = node.outputs[0]
        if _is_token_gemm(tokens, node) or (_swaps_rows_and_tokens(node) and out in wanted):
            wanted.update(value for value in node.inputs[:1] if value is not None)
        elif out in cut and out in wanted and _is_elementwise(node):
            wanted.update(value for value in node.inputs if value is not None)
    return {value for value in cut & wanted | biased if _width(value) is not None}


def _is_token_gemm(tokens: _Tokens, node: ir.Node) -> bool:
    w = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
    if w is None or rank(w) != 3 or _elements_per_token(w) < tokens.min_elements or _width(node.outputs[0]) is None:
        return False
    return constant(w) is not None or int8_weight(w) is not None


def _is_elementwise(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in UNARY | BINARY


def _is_matrix(value: ir.Value | None) -> bool:
    dims = None if value is None else rank(value)
    return dims is not None and dims <= 2


def _elementwise(tokens: _Tokens, node: ir.Node) -> Parts | None:
    """Carry slices through an element-wise operator; None if an operand cannot be sliced by feature token."""
    operands = [value for value in node.inputs if value is not None]
    counts = {len(tokens.computed[value]) for value in operands if value in tokens.computed}
    arity = 1 if node.op_type in UNARY else 2 if node.op_type in BINARY else 0
    if node.domain != "" or len(counts) != 1 or len(operands) != arity:
        return None
    count = counts.pop()
    columns: list[Parts] = []
    for value in operands:
        cut = _operand(tokens, value, count)
        if cut is None:
            return None
        columns.append(cut)
    out = node.outputs[0]
    return tuple(
        add_node(
            node,
            node.op_type,
            [column[t] for column in columns],
            node.attributes,
            name=names.sliced(out.name, t),
            like=out,
        )
        for t in range(count)
    )


def _operand(tokens: _Tokens, value: ir.Value, count: int) -> Parts | None:
    """Return T operands that broadcast against [M, N] as the whole operand does against [T, M, N]."""
    known = tokens.known(value)
    if known is not None:
        return known if len(known) == count else None
    whole = constant(value)
    if whole is not None and whole.ndim == 3 and whole.shape[0] in (1, count):
        cut = []
        for t in range(whole.shape[0]):
            part = whole[t]  # [M or 1, N or 1]
            if part.shape[0] == 1:
                part = part[0]  # a 1-D bias lets the runtime fuse GEMM and Add
            cut.append(add_initializer(tokens.graph, names.sliced(value.name, t), part))
        return tuple(cut) if len(cut) == count else (cut[0],) * count
    dims = rank(value)
    return (value,) * count if dims is not None and dims <= 2 else None


def _stack(tokens: _Tokens, value: ir.Value | None) -> None:
    """Stack a value that only exists as slices, for a consumer that needs all of it."""
    if value in tokens.computed and value not in tokens.stacked:
        parts = tokens.computed[value]
        whole = _restack(tokens, value, parts, axis=0)
        tokens.computed[whole] = parts
        tokens.stacked |= {value, whole}


def _restack(tokens: _Tokens, value: ir.Value, parts: Parts, axis: int) -> ir.Value:
    """Stack parts [M, N] along an axis; the result takes over the value's name and readers."""
    node = value.producer()
    assert node is not None
    name = value.name
    width = _width(value)
    assert width is not None  # slices are only made of values whose width is known
    joined = add_node(node, "Concat", [*parts], {"axis": axis}, name=names.derived(name, "joined"), like=value)
    shape = (len(parts), -1, width) if axis == 0 else (-1, len(parts), width)
    whole = _reshape(tokens.graph, node, joined, shape, str(name))
    take_over(value, whole)
    return whole
