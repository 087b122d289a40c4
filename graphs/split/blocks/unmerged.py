"""Rows and positions merged to one axis, ``x.view(-1, D)``: what acts on each of them is done before the view.

Merged, the positions of one side are no consecutive part of the axis. ``f(x.view(-1, D)) = f(x).view(-1, D')``, and a
view back to positions then undoes the first one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from graphs.split.blocks.regions import Regions
from graphs.split.column_provenance import leading_sizes, merged_axes

aten = torch.ops.aten

__all__ = ["unmerged"]

_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints)
_FIRST = (aten.linear.default, aten.layer_norm.default, aten.rms_norm.default, aten.dropout.default,
          aten.clone.default, aten.contiguous.default, aten.alias.default, aten._to_copy.default)  # fmt: skip
_PRODUCTS = (aten.matmul.default,)
_NORMS = (aten.layer_norm.default, aten.rms_norm.default)


def unmerged(regions: Regions, node: fx.Node) -> list[fx.Node] | None:
    """Move a view that merges positions with rows behind ``node``; return what is now to visit, None if not moved."""
    call, value = regions.rewriter.call, node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    source = node.args[0] if node.args else None
    if node.target in _VIEWS and isinstance(source, fx.Node):
        before = _before(regions, source)
        if before is None:
            return _apart(regions, node, source)
        if list(before.meta["val"].shape) == list(value.shape):
            regions.rewriter.replace(node, before)
            return []  # visited before
        if sum(isinstance(s, torch.SymInt) for s in value.shape) > 1:
            return None
        result = call(node, aten.reshape.default, before, _sizes(value.shape))
        regions.rewriter.replace(node, result)
        return [result]
    product = _product_on_each(regions, node)
    alone = _on_each(regions, node) if product is None else product
    if alone is None:
        return None
    merged = call(node, aten.reshape.default, alone, [-1, *_sizes(value.shape[1:])])
    regions.rewriter.replace(node, merged)
    return [alone] if product is None else [*(n for n in alone.all_input_nodes if n.target in _PRODUCTS), alone]


def _sizes(shape: Any) -> list[int]:
    return [-1 if isinstance(s, torch.SymInt) else int(s) for s in shape]


def _before(regions: Regions, node: object) -> fx.Node | None:
    """Return the tensor with segments of which ``node`` is a view that only merges their axis with the rows."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.target not in _VIEWS:
        return None
    source = node.args[0]
    found = regions.known.get(source) if isinstance(source, fx.Node) else None
    if found is None or not found.plain or not isinstance(source, fx.Node):
        return None
    old, new = source.meta["val"].shape, node.meta["val"].shape
    count = merged_axes(old, new[0]) if isinstance(new[0], torch.SymInt) else None
    return source if count is not None and found.axis < count and list(old[count:]) == list(new[1:]) else None


def _apart(regions: Regions, node: fx.Node, source: fx.Node) -> list[fx.Node] | None:
    """Write a view that merges and reshapes the rest as one that reshapes the rest, and one that merges."""
    found, shape = regions.known.get(source), node.meta["val"].shape
    if found is None or not found.plain or not isinstance(shape[0], torch.SymInt):
        return None
    if _before(regions, node) is not None:
        return None
    before = source.meta["val"].shape
    # Heads that are merged with the rows come apart: [T, B * H, D] to [T, B, H * D].
    head = leading_sizes(before, found.axis, shape[0])
    if head is None:
        return None
    kept = regions.rewriter.call(node, aten.reshape.default, source, [*head, *_sizes(shape[1:])])
    merged = regions.rewriter.call(node, aten.reshape.default, kept, [-1, *_sizes(shape[1:])])
    regions.rewriter.replace(node, merged)
    return [kept]


def _product_on_each(regions: Regions, node: fx.Node) -> fx.Node | None:
    """Return a product with a weight, and its bias, on the tensor before the view (``addmm``, as in GPT-2)."""
    if node.target not in (aten.addmm.default, aten.mm.default, aten.matmul.default):
        return None
    bias, left, right = (None, *node.args[:2]) if node.target is not aten.addmm.default else node.args[:3]
    before, weight = _before(regions, left), regions.rewriter.value(right)
    scaled = any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
    if before is None or weight is None or weight.dim() != 2 or scaled:
        return None
    if isinstance(bias, fx.Node) and (bias.meta["val"].dim() > 1 or regions.rewriter.value(bias) is None):
        return None
    product = regions.rewriter.call(node, aten.matmul.default, before, right)
    return product if bias is None else regions.rewriter.call(node, aten.add.Tensor, product, bias)


def _on_each(regions: Regions, node: fx.Node) -> fx.Node | None:
    """Return the op on the tensors before the view, None if it does not act on each row of it alone."""
    target: Any = node.target
    rank = node.meta["val"].dim()
    before = {n: b for n in node.all_input_nodes if (b := _before(regions, n)) is not None}
    if not before or not isinstance(target, torch._ops.OpOverload):
        return None
    heads = {tuple(str(s) for s in b.meta["val"].shape[: b.meta["val"].dim() - rank + 1]) for b in before.values()}
    first = node.args[0] if node.args else None
    if target in _FIRST:
        inside = target not in _NORMS or len(node.args[1]) < rank  # type: ignore[arg-type]  # a list of sizes
        if list(before) != [first] or not inside:
            return None
    elif torch.Tag.pointwise not in target.tags or len(heads) != 1:
        return None
    elif any(_reaches_rows(n, rank) for n in node.all_input_nodes if n not in before):
        return None
    arguments, options = pytree.tree_map_only(fx.Node, lambda n: before.get(n, n), (node.args, node.kwargs))
    return regions.rewriter.call(node, target, *arguments, **options)


def _reaches_rows(node: fx.Node, rank: int) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() >= rank
