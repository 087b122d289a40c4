"""Compute in float32 what a model computes in bfloat16 or float16, for which CPU runtimes have no kernels.

Every such weight is a float32 number, so only roundings between the ops are gone: scores move by what the 8 (or 11)
bits of the shorter format lose. It also covers autocast, which a trace holds as casts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from graphs.base.errors import UgsepError
from graphs.trace.node_location import location_of

__all__ = ["LOW_PRECISION", "WIDENED", "widen"]

LOW_PRECISION = (torch.bfloat16, torch.float16)
#: What a user is told.
WIDENED = "the model's bfloat16 or float16 parts are computed in float32"
aten = torch.ops.aten
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.type_as.default)


def widen(module: fx.GraphModule) -> bool:
    """Rewrite a traced graph to float32, in place; return whether there was something to rewrite.

    The parameters of the traced model stay as they are; the graph gets float32 copies under the same names.

    Raises:
        UgsepError: control flow, or a view of the bits of such numbers.
    """
    graph = module.graph
    if not any(_is_low(value) for node in graph.nodes for value in pytree.tree_leaves(node.meta.get("val"))):
        return False
    mode = detect_fake_mode([n.meta["val"] for n in graph.nodes if isinstance(n.meta.get("val"), Tensor)])
    assert mode is not None
    copies: dict[int, nn.Parameter] = {}
    with mode, enable_python_dispatcher(), torch.no_grad():
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                if _is_low(node.meta.get("val")):
                    node.meta["val"] = node.meta["val"].to(torch.float32)
            elif node.op == "call_function" and isinstance(node.meta.get("val"), (Tensor, tuple, list)):
                if isinstance(node.target, torch._ops.HigherOrderOperator) or node.target is aten.view.dtype:
                    raise UgsepError(f"{location_of(node)} works on 16-bit floats; call .float() on the model")
                node.args, node.kwargs = pytree.tree_map_only(torch.dtype, _wide, (node.args, node.kwargs))
                args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
                node.meta["val"] = node.target(*args, **kwargs)
    for node in list(graph.nodes):
        if node.op == "get_attr":
            _copy_wide(module, str(node.target), copies)
        elif node.target in _CASTS and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    module.recompile()
    return True


def _is_low(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in LOW_PRECISION


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in LOW_PRECISION else dtype


def _copy_wide(module: fx.GraphModule, name: str, copies: dict[int, nn.Parameter]) -> None:
    """Give the graph a float32 copy of one of its tensors; tied weights stay tied."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    value = getattr(owner, last)
    if _is_low(value):
        copy = copies.setdefault(id(value), nn.Parameter(value.detach().float(), requires_grad=False))
        delattr(owner, last)
        owner.register_parameter(last, copy)
