"""``masked_scatter`` with a mask that is the same in every row, as a lookup.

The op takes values in one order over all rows. If every row takes as many as it brings, each takes its own.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.utils import _pytree as pytree

from graphs.base.cost import static
from graphs.rows.row_values import row_axis, same_in_every_row, values_of_rows

__all__ = ["write_out_scatters"]

aten = torch.ops.aten


def write_out_scatters(module: fx.GraphModule) -> None:
    """Replace, in place, what writes values of each row to constant places of it; the rest is refused later."""
    graph = module.graph
    calls = list(graph.find_nodes(op="call_function", target=aten.masked_scatter.default))
    if not calls:
        return
    masks = [n.args[1] for n in calls]
    values = values_of_rows(graph, masks, lambda name: operator.attrgetter(name)(module))
    for node in calls:
        target, mask, source = node.args
        places = _places(target, mask, values.get(mask))
        if places is None or not _is_taken_whole(source, int(places.sum())):
            continue
        order = (places.flatten().cumsum(0) - 1).clamp_min(0)  # which value each place takes
        shape = [int(s) for s in target.meta["val"].shape[1:]]
        flat = _call(node, aten.reshape.default, source, [-1, int(places.sum())])
        taken = _call(node, aten.index_select.default, flat, 1, _constant(module, node, "order", order))
        taken = _call(node, aten.reshape.default, taken, [-1, *shape])
        chosen = _constant(module, node, "places", places.unsqueeze(0))
        result = _call(node, aten.where.self, chosen, taken, target)
        node.replace_all_uses_with(result)
    graph.eliminate_dead_code()
    module.recompile()


def _places(target: fx.Node, mask: fx.Node, value: Tensor | None) -> Tensor | None:
    """Return the mask of a row, of the shape of a row, if it is known."""
    shape = target.meta["val"].shape
    if value is None or row_axis(target) != 0:
        return None
    if any(isinstance(s, torch.SymInt) for s in mask.meta["val"].shape):
        row = same_in_every_row(mask, value) if row_axis(mask) == 0 and value.dim() == len(shape) else None
        value = row[0] if row is not None else None
    elif value.dim() == len(shape):
        value = value[0]
    return None if value is None else value.expand([int(s) for s in shape[1:]])


def _is_taken_whole(source: fx.Node, count: int) -> bool:
    """Return whether every row of the values has exactly ``count`` of them."""
    shape = source.meta["val"].shape
    return row_axis(source) == 0 and count > 0 and math.prod(static(s) for s in shape[1:]) == count


def _call(like: fx.Node, target: torch._ops.OpOverload, *arguments: Any) -> fx.Node:
    with like.graph.inserting_before(like):
        node = like.graph.call_function(target, arguments)
    node.meta = {k: v for k, v in like.meta.items() if k in ("nn_module_stack", "stack_trace")}
    values = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], arguments)
    with like.meta["val"].fake_mode, enable_python_dispatcher(), torch.no_grad():
        node.meta["val"] = target(*values)
    return node


def _constant(module: fx.GraphModule, like: fx.Node, name: str, value: Tensor) -> fx.Node:
    name = f"{like.name}_{name}"
    module.register_buffer(name, value)
    with like.graph.inserting_before(like):
        node = like.graph.create_node("get_attr", name)
    with like.meta["val"].fake_mode:
        node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return node
