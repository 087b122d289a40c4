"""Check that the rows of a traced graph do not depend on each other, and find the row axis of every tensor.

Every tensor computed from inputs has one axis that carries the rows, of size ``outer * batch * inner`` (``Rows``).
An op keeps rows apart if that axis survives it; the rules are in ``graphs.rows.rules``. Ops that reduce, sort, index,
contract or reshape the axis are rejected with module path and source line.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphs.base.errors import UgsepError
from graphs.rows.layout import CONSTANT, UNIFORM, Call, Layout, MixesRows, Position, Rows, promote, symbolic_axes
from graphs.rows.rules import layout_of_call
from graphs.rows.sides import is_row_count
from graphs.trace.node_location import location_of
from graphs.trace.trace import Traced

aten = torch.ops.aten

__all__ = ["Rows", "check_rows_independent", "row_layouts"]


def check_rows_independent(traced: Traced) -> dict[fx.Node, Rows]:
    """Return the row axis of every tensor that has one; reject a graph in which one row can influence another.

    Raises:
        UgsepError: an op that mixes rows, reads their position or number, or has a data-dependent shape, or an output
            that is not batch first; names op, module path and source line.
    """
    found = row_layouts(traced.module.graph)
    result = next(n for n in traced.module.graph.nodes if n.op == "output")
    for buffer, node in traced.buffer_writes:
        raise UgsepError(
            f"rows depend on each other: {location_of(node)} updates the buffer '{buffer}', which later calls read; "
            "call .eval() on the model or keep its state out of forward"
        )
    for name, node in zip(traced.outputs, result.args[0], strict=True):
        if found[node] not in (Rows(0), UNIFORM):
            shape = tuple(str(s) for s in node.meta["val"].shape)
            raise UgsepError(
                f"output '{name}' of {location_of(node)} has shape {shape}; "
                "return one value or vector per row, batch first"
            )
    rows: dict[fx.Node, Rows] = {}
    for node, layout in found.items():
        shown = promote(layout, node.meta["val"]) if layout is UNIFORM else layout
        if isinstance(shown, Rows):
            rows[node] = shown
    return rows


def row_layouts(graph: fx.Graph, given: Mapping[fx.Node, Layout] | None = None) -> dict[fx.Node, Layout]:
    """Return the layout of every node; ``given`` overrides the placeholders' (default: batch first).

    Raises:
        UgsepError: as ``check_rows_independent``.
    """
    found: dict[fx.Node, Layout] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = given[node] if given is not None else Rows(0)
        elif node.op == "get_attr":
            found[node] = CONSTANT
        elif node.op == "call_function":
            try:
                found[node] = _checked(node, _layout(node, found))
            except MixesRows as problem:
                raise UgsepError(f"rows depend on each other: {location_of(node)} {problem}") from None
    return found


def _layout(node: fx.Node, found: dict[fx.Node, Layout]) -> Layout:
    if node.target is operator.getitem:
        whole, index = node.args
        assert isinstance(whole, fx.Node)
        layout = found[whole]
        return layout[index] if isinstance(layout, tuple) else layout  # type: ignore[index]  # a constant int
    if is_row_count(node):
        reads_value = node.target in (aten._local_scalar_dense.default, aten.item.default)
        if reads_value and any(found[n] not in (CONSTANT, UNIFORM) for n in node.all_input_nodes):
            raise MixesRows("converts a tensor's value to a number for the whole batch; keep it a tensor")
        return CONSTANT
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return _higher_order(node, found)
    return layout_of_call(Call(node, found))


def _higher_order(node: fx.Node, found: dict[fx.Node, Layout]) -> Layout:
    """Check the branches of a control-flow op whose condition is the same for all rows."""
    if node.target is not torch.ops.higher_order.cond:
        raise MixesRows("is control flow that cannot be checked; use torch.where or torch.cond")
    predicate, branches, operands = node.args[0], node.args[1:3], node.args[3]
    if isinstance(predicate, fx.Node) and found[predicate] is not CONSTANT:
        raise MixesRows("takes one branch for all rows by a value computed from them; use torch.where")
    assert isinstance(operands, (list, tuple))
    results: list[Any] = []
    for branch in branches:
        assert isinstance(branch, fx.Node)
        module = operator.attrgetter(str(branch.target))(node.graph.owning_module)
        inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        given = {
            inner: found[outer] if isinstance(outer, fx.Node) else CONSTANT
            for inner, outer in zip(inputs, operands, strict=True)
        }
        inside = row_layouts(module.graph, given)
        output = next(n for n in module.graph.nodes if n.op == "output")
        results.append(tuple(promote(inside[n], n.meta["val"]) for n in output.args[0]))
    if results[0] != results[1]:
        raise MixesRows("has branches whose rows are along different axes; return the same layout from both")
    return results[0]  # type: ignore[no-any-return]  # a tuple of layouts


def _checked(node: fx.Node, layout: Layout) -> Layout:
    """Check a rule's result against the traced shape: the row axis is the only symbolic one, and of that size."""
    value = node.meta.get("val")
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    layouts = list(layout) if isinstance(layout, tuple) else [layout] * len(values)
    for one, tensor in zip(layouts, values, strict=True):
        if not isinstance(tensor, torch.Tensor) or isinstance(one, Position):
            continue
        axes = symbolic_axes(tensor)
        if isinstance(one, Rows) and list(axes) != [one.axis]:
            shape = tuple(str(s) for s in tensor.shape)
            raise MixesRows(f"pairs rows with each other (shape {shape}); keep every operation within a row")
        if isinstance(one, Rows) and axes[one.axis] != one.outer * one.inner:
            raise MixesRows("changes the number of rows; keep one result row per input row")
        if one is CONSTANT and axes:
            raise MixesRows("computes values from the number of rows; scores must not depend on it")
    return layout
