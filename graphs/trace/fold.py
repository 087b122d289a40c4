"""Compute what a model derives from its parameters alone by operations that no runtime has, once.

Orthogonal parametrizations and inverses of parameters are decompositions of matrices, the same at every call. Other
expressions of parameters stay in the graph, so that weights keep their names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from graphs.rows.rules import has_rule

__all__ = ["fold_parameters"]

_PARAMETRIZATIONS = ".parametrizations."


def fold_parameters(module: fx.GraphModule) -> None:
    """Replace, in place, expressions of parameters that hold an op without a row rule by their values.

    Parameters on the meta device have no values, so their expressions stay.
    """
    derived = _derived(module.graph)
    for node in derived:
        # An effect that would keep the op it checks; what is singular fails in the model itself.
        if node.target is torch.ops.aten._linalg_check_errors.default:
            module.graph.erase_node(node)
    values: dict[fx.Node, Any] = {}
    for node, unfamiliar in derived.items():
        read = [user for user in node.users if user not in derived]
        if not unfamiliar or not read or not isinstance(node.meta.get("val"), Tensor):
            continue
        value = _value(module, node, values)
        if value.device.type == "meta":
            continue
        name = _free_name(module, node)
        module.register_buffer(name, value)
        with module.graph.inserting_before(node):
            folded = module.graph.create_node("get_attr", name)
        folded.meta = {k: node.meta[k] for k in ("val", "stack_trace", "nn_module_stack") if k in node.meta}
        for user in read:
            user.replace_input_with(node, folded)
    if values:
        module.graph.eliminate_dead_code()
        module.recompile()


def _derived(graph: fx.Graph) -> dict[fx.Node, bool]:
    """Return the nodes computed from parameters alone, and whether an op without a row rule is among their ops."""
    found: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node] = False
        elif node.op == "call_function" and all(n in found for n in node.all_input_nodes):
            op = node.target
            is_op = isinstance(op, OpOverload)
            if is_op and (torch.Tag.nondeterministic_seeded in op.tags or op._schema.is_mutable):
                continue
            found[node] = any(found[n] for n in node.all_input_nodes) or (is_op and not has_rule(op))
    return found


def _value(module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """Return the value of a node of ``_derived``; ``values`` holds those computed before."""
    todo = [node]
    while todo:
        last = todo[-1]
        missing = [n for n in last.all_input_nodes if n not in values]
        if last in values or missing:
            todo = todo[:-1] if last in values else todo + missing
            continue
        if last.op == "get_attr":
            found: Any = module
            for part in str(last.target).split("."):
                found = getattr(found, part)
            values[last] = found.detach() if isinstance(found, Tensor) else found
        else:
            args, kwargs = pytree.tree_map_only(fx.Node, values.__getitem__, (last.args, last.kwargs))
            with torch.no_grad():
                values[last] = last.target(*args, **kwargs)  # type: ignore[operator]  # an op
    return values[node]


def _free_name(module: fx.GraphModule, node: fx.Node) -> str:
    """Return a name for a folded value: the parametrized weight's own, else one after its first parameter."""
    todo, first = [node], ""
    while todo:
        last = todo.pop()
        if last.op == "get_attr":
            first = str(last.target)
        todo += reversed(last.all_input_nodes)
    prefix, parametrized, rest = first.partition(_PARAMETRIZATIONS)
    plain = f"{prefix}.{rest.split('.')[0]}" if parametrized else f"{first}.folded"
    base = plain.replace(".", "_")  # a buffer of the graph itself has no dots
    name, number = base, 1
    while hasattr(module, name):
        name, number = f"{base}_{number}", number + 1
    return name
