"""Drop the columns of a product that no node reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphs.base.cost import static
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten


def narrow_products(rewriter: Rewriter) -> None:
    """Push a slice of the last axis up through additions into the weight of a product.

    ``(x W + b + r)[..., a:b] = x W[:, a:b] + b[a:b] + r[..., a:b]``, if nothing else reads the full result. Under
    the mask, token mixing reads only some slices of a row.
    """
    for node in reversed(list(rewriter.graph.nodes)):
        if node.op != "call_function" or node.target is not aten.slice.Tensor or rewriter.sides.get(node) != "item":
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        shape = source.meta["val"].shape
        dim, columns = sliced(node)
        if dim != len(shape) - 1 or columns is None:
            continue
        low, high = columns
        if high - low < static(shape[-1]) and _reaches_product(source, node):
            rewriter.replace(node, _narrowed(rewriter, source, node, low, high))


def sliced(node: fx.Node) -> tuple[int, tuple[int, int] | None]:
    """Return the axis of an ``aten.slice`` and its bounds, None if unknown or not consecutive."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    given: list[Any] = [0, 0, None, 1]
    given[: len(node.args) - 1] = node.args[1:]
    dim, start, end, step = given
    if step != 1 or isinstance(shape[dim], torch.SymInt) or isinstance(start, fx.Node) or isinstance(end, fx.Node):
        return dim % len(shape), None
    low, high, _ = slice(start, end).indices(int(shape[dim]))
    return dim % len(shape), (low, max(low, high))


def _reaches_product(node: fx.Node, reader: fx.Node) -> bool:
    if set(node.users) != {reader} or node.op != "call_function":
        return False
    if node.target in (aten.linear.default, aten.matmul.default):
        weight = node.args[1]
        return isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.meta["val"].dim() >= 2
    plain = node.target is aten.add.Tensor and not node.kwargs
    return plain and any(_reaches_product(n, node) for n in node.all_input_nodes)


def _narrowed(rewriter: Rewriter, node: fx.Node, reader: fx.Node, low: int, high: int) -> fx.Node:
    """Return a node with columns ``low:high`` of ``node``'s last axis, for ``reader``."""
    if node.op == "get_attr":
        held = rewriter.value(node)
        assert held is not None
        return rewriter.constant(f"{node.target}.columns{low}_{high}", held.narrow(-1, low, high - low))
    if not _reaches_product(node, reader):
        return rewriter.call(reader, aten.slice.Tensor, node, node.meta["val"].dim() - 1, low, high)
    if node.target is aten.add.Tensor:
        width = static(node.meta["val"].shape[-1])
        wide = [isinstance(n, fx.Node) and static(n.meta["val"].shape[-1]) == width for n in node.args]
        terms = [
            _narrowed(rewriter, n, node, low, high) if w and isinstance(n, fx.Node) else n
            for n, w in zip(node.args, wide, strict=True)
        ]
        return rewriter.call(node, aten.add.Tensor, *terms)
    data, weight, *bias = node.args
    assert isinstance(weight, fx.Node)
    held = rewriter.value(weight)
    assert held is not None
    axis = 0 if node.target is aten.linear.default else held.dim() - 1
    columns = rewriter.constant(f"{weight.target}.columns{low}_{high}", held.narrow(axis, low, high - low))
    added = [_narrowed(rewriter, b, node, low, high) for b in bias if isinstance(b, fx.Node)]
    return rewriter.call(node, node.target, data, columns, *added)
