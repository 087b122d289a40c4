"""Values that are computed from constants and the number of rows alone, for three rows.

Rows do not depend on each other, so such a tensor holds the same in every row, unless it counts them (``arange(N)``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from graphs.base.cost import static
from graphs.rows.reach import ancestors
from graphs.rows.sides import is_row_count

__all__ = ["ROWS", "row_axis", "same_in_every_row", "values_of_rows"]

#: With three rows, positions of rows (0, 1, 2) are no constants, and sizes are seldom taken for widths.
ROWS = 3
# Elements of what is computed here; a mask for 2,000 positions has 4 million.
_LARGEST = 1 << 25
_UNDEFINED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def values_of_rows(graph: fx.Graph, wanted: Sequence[fx.Node], tensor_of: Callable[[str], Any]) -> dict[fx.Node, Any]:
    """Return the values of nodes, and of what they are computed from, for ``ROWS`` rows.

    What reads inputs, parameters, or tensors on the meta device has none. ``tensor_of`` returns the tensor of a name.
    """
    needed = ancestors(wanted)
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node not in needed:
            continue
        found = node.meta.get("val")
        if node.op == "get_attr":
            held = tensor_of(str(node.target))
            if isinstance(held, Tensor) and not isinstance(held, nn.Parameter) and not held.is_meta:
                values[node] = held
        elif is_row_count(node):
            if isinstance(found, (int, torch.SymInt)):
                values[node] = _count(found)
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes) and _is_computed(node):
            arguments, options = pytree.tree_map_only(fx.Node, values.__getitem__, (node.args, node.kwargs))
            with torch.no_grad():
                values[node] = node.target(*arguments, **options)
    return values


def row_axis(node: fx.Node) -> int | None:
    """Return the axis of the rows, None unless there is one, with a row at each position."""
    shape = node.meta["val"].shape
    axes = [a for a, s in enumerate(shape) if isinstance(s, torch.SymInt)]
    return axes[0] if len(axes) == 1 and static(shape[axes[0]]) == 1 and _count(shape[axes[0]]) == ROWS else None


def same_in_every_row(node: fx.Node, value: Tensor) -> Tensor | None:
    """Return what a tensor of all rows holds in each, with an axis of size 1 for the rows; None if rows differ."""
    axis = row_axis(node)
    if axis is None or not torch.equal(value, value.narrow(axis, 0, 1).expand_as(value)):
        return None
    return value.narrow(axis, 0, 1).contiguous()


def _is_computed(node: fx.Node) -> bool:
    op, value = node.target, node.meta.get("val")
    if not isinstance(op, torch._ops.OpOverload):
        return getattr(op, "__name__", "") == "getitem"
    if torch.Tag.nondeterministic_seeded in op.tags or op._schema.name.split("::")[1] in _UNDEFINED:
        return False
    tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
    return all(math.prod(_count(s) for s in t.shape) <= _LARGEST for t in tensors)


def _count(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    expression: Any = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, ROWS)))
