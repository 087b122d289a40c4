"""The item graph for requests of one user: its state is broadcast from one row, not gathered to every candidate.

The canonical graph gathers every state tensor [U, ...] to the candidates, so for one user it computes with N equal
rows. Rows are independent: values that depend on the user alone can keep one row until they meet the candidates. Then
element-wise ops broadcast them, and a product with them is one GEMM over all candidates' rows; they are expanded only
for ops that cannot broadcast (concatenations, reshapes of rows).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from export import names
from export.lowering.nodes import add_initializer, add_node, constant, take_over
from export.lowering.passes import Lowering, Pass
from graphs.base.names import USER_INDEX

ROWS, USERS = "candidates", "users"

_ELEMENTWISE = frozenset(
    "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul "
    "Or Pow Sub Sum Where Xor".split()
)


@dataclass
class _Users:
    """State of the walk over the graph, node by node in topological order.

    ``axis``: user value that keeps one row -> its row axis. ``fixed``: values that depend on no input. ``expanded``:
    the former with N rows; ``matrices``: without the row axis. ``shapes``: shape of an Expand by rank and axis.
    """

    graph: ir.Graph
    count: ir.Value
    axis: dict[ir.Value, int] = field(default_factory=dict)
    fixed: set[ir.Value] = field(default_factory=set)
    expanded: dict[ir.Value, ir.Value] = field(default_factory=dict)
    matrices: dict[ir.Value, ir.Value] = field(default_factory=dict)
    shapes: dict[tuple[int, int], ir.Value] = field(default_factory=dict)

    def keep(self, value: ir.Value, axis: int) -> None:
        """Keep a user value at one row."""
        self.axis[value] = axis
        assert value.shape is not None
        value.shape = _resized(value.shape, axis, 1)

    def is_fixed(self, value: ir.Value | None) -> bool:
        return value is None or value.is_initializer() or value in self.fixed

    def all_rows(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return the value with as many rows as there are candidates."""
        if value not in self.expanded:
            assert value.shape is not None
            axis = self.axis[value]
            shape = self._shape(len(value.shape), axis)
            whole = add_node(before, "Expand", [value, shape], name=names.derived(value.name, "all_rows"), like=value)
            whole.shape = _resized(value.shape, axis, ROWS)
            self.expanded[value] = whole
        return self.expanded[value]

    def matrix(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return the matrices [.., 1, K, M] of one user without the row axis."""
        if value not in self.matrices:
            assert value.shape is not None
            axis = self.axis[value]
            axes = add_initializer(self.graph, names.shared("axes", axis), np.array([axis], np.int64))
            self.matrices[value] = add_node(
                before, "Squeeze", [value, axes], name=names.derived(value.name, "matrix"), like=value
            )
            self.matrices[value].shape = ir.Shape([*value.shape[:axis], *value.shape[axis + 1 :]])
        return self.matrices[value]

    def fold_rows(self, node: ir.Node, value: ir.Value) -> None:
        """Multiply the rows [.., N, M, K] of all candidates by the matrices of one user: one product [.., N * M, K].

        Without it, the runtime multiplies the M rows of every candidate, often a single one, by a matrix of its own.
        """
        left, out = node.inputs[0], node.outputs[0]
        assert left is not None
        assert left.shape is not None
        assert out.shape is not None
        # All sizes but that of the candidates, which is the third last, are known.
        *batch, rows, width = [d for d in left.shape if isinstance(d, int)]
        columns = out.shape[-1]
        assert isinstance(columns, int)
        folded = self._reshaped(node, left, [*batch, -1, width], "rows")
        product = add_node(
            node, "MatMul", [folded, self.matrix(value, node)], name=names.derived(out.name, "folded"), like=out
        )
        product.shape = ir.Shape([*batch, None, columns])
        apart = self._reshaped(node, product, [*batch, -1, rows, columns], "separate")
        take_over(out, apart)
        self.graph.remove(node, safe=True)

    def _reshaped(self, before: ir.Node, value: ir.Value, sizes: list[int], name: names.Role) -> ir.Value:
        shape = add_initializer(self.graph, names.shape(sizes), np.array(sizes, np.int64))
        made = add_node(before, "Reshape", [value, shape], name=names.derived(value.name, name), like=value)
        made.shape = ir.Shape([None if size < 0 else size for size in sizes])
        return made

    def _shape(self, rank: int, axis: int) -> ir.Value:
        """Return the shape [1, .., N, .., 1] as a value."""
        if rank == 1:
            return self.count
        if (rank, axis) not in self.shapes:
            sizes = [*self._ones(axis), self.count, *self._ones(rank - 1 - axis)]
            counting = self.count.producer()
            assert counting is not None
            shape = ir.node("Concat", sizes, {"axis": 0})
            shape.outputs[0].name, shape.outputs[0].type = names.shared("rows", axis, rank), self.count.type
            counting.append(shape)
            self.shapes[rank, axis] = shape.outputs[0]
        return self.shapes[rank, axis]

    def _ones(self, count: int) -> list[ir.Value]:
        return [add_initializer(self.graph, names.shared("ones", count), np.ones(count, np.int64))] if count else []


def broadcast_user(lowering: Lowering) -> None:
    """Rewrite an item graph for state [1, ...] and without ``user_index``.

    Needs inferred shapes, in which the row axes are called ``users`` and ``candidates``. A graph that gathers nothing
    by ``user_index``, or reads no item input, is refused and not changed.
    """
    graph = lowering.graph
    index = next((v for v in graph.inputs if v.name == USER_INDEX), None)
    counted = next((v for v in graph.inputs if v is not index and _row_axis(v, ROWS) == 0 and v.uses()), None)
    if index is None or counted is None or not all(_is_known_use(n, index) for n in index.consumers()):
        lowering.refusal = f"needs an item input and '{USER_INDEX}', read by Gather and Shape only"
        return
    first = graph[0]
    count = add_node(first, "Shape", [counted], {"start": 0, "end": 1}, name=names.shared("rows"), like=index)
    count.shape = ir.Shape([1])
    users = _Users(graph, count)
    output_names = [str(value.name) for value in graph.outputs]
    for value in graph.inputs:
        if _row_axis(value, USERS) is not None:
            users.keep(value, 0)
    for node in list(graph):
        if node is count.producer():
            continue
        if index in node.inputs:
            # Gathered values are the state itself from here on; its size is that of any other item input.
            kept = node.inputs[0]
            if node.op_type == "Shape" or kept is None:
                node.replace_input_with(0, counted)
            else:
                ir.convenience.replace_all_uses_with(node.outputs[0], kept, replace_graph_outputs=True)
                graph.remove(node, safe=True)
                continue
        elif node.inputs and all(users.is_fixed(v) for v in node.inputs):
            users.fixed.update(node.outputs)
        elif any(v in users.axis for v in node.inputs):
            _visit(users, node)
        for inner in _inside(node):  # a branch or a loop reads outer values by name
            for position, read in enumerate(inner.inputs):
                if read is not None and read in users.axis:
                    inner.replace_input_with(position, users.all_rows(read, node))
    _expand_outputs(users, output_names)
    graph.inputs.remove(index)


BROADCAST_USER = Pass("broadcast the user", broadcast_user)


def _expand_outputs(users: _Users, output_names: list[str]) -> None:
    """Expand outputs that depend on the user alone to all rows, under their own names."""
    for position, (value, name) in enumerate(zip(list(users.graph.outputs), output_names, strict=True)):
        if value in users.axis:
            last = ir.node("Identity", [value])
            users.graph.append(last)
            whole = users.all_rows(value, last)
            last.replace_input_with(0, whole)
            if value.name == name:
                value.name = names.derived(name, "one_row")
            last.outputs[0].name, last.outputs[0].type, last.outputs[0].shape = name, value.type, whole.shape
            users.graph.outputs[position] = last.outputs[0]


def _visit(users: _Users, node: ir.Node) -> None:
    """Keep the outputs of a node at one row if all its inputs are user values; broadcast or expand them otherwise."""
    alone = all(v in users.axis or users.is_fixed(v) for v in node.inputs)
    axes = [_row_axis(out, ROWS, USERS) for out in node.outputs]
    if alone and None not in axes and _keeps_rows(node, axes[0]):
        for out, axis in zip(node.outputs, axes, strict=True):
            assert axis is not None
            users.keep(out, axis)
        return
    for position, value in enumerate(node.inputs):
        if value is None or value not in users.axis:
            continue
        if alone or not _broadcasts(users, node, value):
            node.replace_input_with(position, users.all_rows(value, node))
        elif node.op_type == "MatMul" and position == 1 and value.shape is not None and len(value.shape) == 3:
            node.replace_input_with(position, users.matrix(value, node))
        elif node.op_type == "MatMul" and position == 1 and _folds(node, value, users.axis[value]):
            users.fold_rows(node, value)


def _keeps_rows(node: ir.Node, axis: int | None) -> bool:
    """Check that a node of user values works for any number of rows: its constants must not fix it."""
    if node.op_type in ("Expand", "Tile") or (node.op_type == "Squeeze" and len(node.inputs) < 2):
        return False
    sizes = constant(node.inputs[1]) if node.op_type == "Reshape" else None
    # In a Reshape, the row axis must be the inferred one (-1).
    return node.op_type != "Reshape" or (sizes is not None and axis is not None and int(sizes[axis]) == -1)


def _broadcasts(users: _Users, node: ir.Node, value: ir.Value) -> bool:
    """Check that a node computes the same from one row of ``value`` as from N equal ones."""
    out = node.outputs[0]
    if node.domain != "" or value.shape is None or out.shape is None:
        return False
    aligned = len(out.shape) - len(value.shape) + users.axis[value]
    if not 0 <= aligned < len(out.shape) or _row_axis(out, ROWS) != aligned:
        return False
    if node.op_type == "MatMul":
        return aligned < len(out.shape) - 2  # a batch of matrices; the rows of a matrix are not broadcast
    return node.op_type in _ELEMENTWISE


def _folds(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """Check that the rows are the axis before the matrices on both sides, and all other sizes are known and equal."""
    left = node.inputs[0]
    if left is None or left.shape is None or value.shape is None or len(left.shape) != len(value.shape):
        return False
    before = len(value.shape) - 3
    known = all(isinstance(d, int) for i, d in enumerate((*left.shape, value.shape[-1])) if i != before)
    return axis == before and known and list(left.shape[:before]) == list(value.shape[:before])


def _inside(node: ir.Node) -> list[ir.Node]:
    graphs = [a.as_graph() for a in node.attributes.values() if a.type is ir.AttributeType.GRAPH]
    return [inner for graph in graphs for inner in graph.all_nodes()]


def _is_known_use(node: ir.Node, index: ir.Value) -> bool:
    gathers = node.op_type == "Gather" and node.inputs[1] is index and node.inputs[0] is not index
    return node.graph is index.graph and node.domain == "" and (gathers or node.op_type == "Shape")


def _row_axis(value: ir.Value | None, *rows: str) -> int | None:
    """Return the axis named by one of ``rows``; None unless there is exactly one."""
    if value is None or value.shape is None:
        return None
    found = [axis for axis, dim in enumerate(value.shape) if isinstance(dim, ir.SymbolicDim) and dim.value in rows]
    return found[0] if len(found) == 1 else None


def _resized(shape: ir.Shape, axis: int, rows: int | str) -> ir.Shape:
    return ir.Shape([rows if position == axis else dim for position, dim in enumerate(shape)])
