"""One form of what is written in several: products of data by matmul and softmax, ``zeros_like`` as zeros."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from graphs.split.blocks.regions import Regions

aten = torch.ops.aten

__all__ = ["attention", "simplified"]


def simplified(regions: Regions, node: fx.Node) -> list[fx.Node]:
    """Replace an einsum or a sum with a product of tensors with segments, or a transpose by another name.

    Returns what is now to visit.
    """
    call, result = regions.rewriter.call, None
    if node.target is aten.mT.default or (node.target is aten.t.default and node.meta["val"].dim() == 2):
        result = call(node, aten.transpose.int, node.args[0], -2, -1)
    elif node.target in _FILLS and node.args[0] in regions.known:
        result = _filled(regions, node)
        if result is not None:
            regions.rewriter.replace(node, result)
            return []
    elif node.target in (aten.addmm.default, aten.mm.default) and any(
        n in regions.known for n in node.all_input_nodes
    ):
        if all(node.kwargs.get(name, 1) == 1 for name in ("beta", "alpha")):
            product = call(node, aten.matmul.default, *node.args[-2:])
            total = call(node, aten.add.Tensor, product, node.args[0]) if len(node.args) == 3 else product
            regions.rewriter.replace(node, total)
            return [product] if total is product else [product, total]
    elif node.target is aten.baddbmm.default and any(n in regions.known for n in node.all_input_nodes):
        if all(node.kwargs.get(name, 1) == 1 for name in ("beta", "alpha")) and len(node.args) == 3:
            product = call(node, aten.bmm.default, *node.args[1:])
            total = call(node, aten.add.Tensor, product, node.args[0])
            regions.rewriter.replace(node, total)
            return [product, total]
    elif node.target is aten.scaled_dot_product_attention.default and _asks_for_all(regions, node):
        before = set(regions.rewriter.graph.nodes)
        result = attention(regions, node)
        if result is not None:
            regions.rewriter.replace(node, result)
            regions.rewriter.graph.erase_node(node)  # attention counts as random, hence not as dead code
            made = [n for n in regions.rewriter.graph.nodes if n not in before and n.op == "call_function"]
            return [n for n in made if n not in regions.known and regions.rewriter.side_of(n) == "item"]
    elif node.target is aten.einsum.default:
        result = _product(regions, node)
    if result is None:
        return [node]
    regions.rewriter.replace(node, result)
    # The permutation of a product comes after it.
    return [result] if result.target is not aten.permute.default else [*result.all_input_nodes, result]


def _asks_for_all(regions: Regions, node: fx.Node) -> bool:
    """Return whether queries that do not depend on the item look at positions of both sides."""
    return regions.rewriter.sides[node.args[0]] != "item"  # type: ignore[index]  # a node


_FILLS: dict[Any, int | None] = {
    aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.full_like.default: None,
}  # fmt: skip


def _filled(regions: Regions, node: fx.Node) -> fx.Node | None:
    """Return ``zeros_like(x)`` without x, so that it needs no item."""
    value = node.meta["val"]
    number: object = node.args[1] if node.target is aten.full_like.default else _FILLS[node.target]
    symbolic = [axis for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
    rows = next(n for n in regions.rewriter.graph.nodes if n.op == "placeholder")
    if not isinstance(number, (bool, int, float)) or len(symbolic) > 1:
        return None
    sizes: list[Any] = list(value.shape)
    for axis in symbolic:
        if value.shape[axis].node.expr != rows.meta["val"].shape[0].node.expr:
            return None
        sizes[axis] = regions.rewriter.call(node, aten.sym_size.int, rows, 0)
    return regions.rewriter.call(node, aten.full.default, sizes, number, dtype=value.dtype)


def _product(regions: Regions, node: fx.Node) -> fx.Node | None:
    """Return ``einsum("..r..c.., ..c..k..")`` of data as a matmul between permutations."""
    operands = node.args[1]
    assert isinstance(operands, (list, tuple))
    equation = str(node.args[0]).replace(" ", "")
    inputs, _, out = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not out or "." in equation or not any(n in regions.known for n in operands):
        return None
    if any(len(set(term)) != len(term) for term in (*terms, out)):
        return None
    left, right = terms
    both = [c for c in out if c in left and c in right]
    rows, columns = (
        [c for c in out if c in mine and c not in other] for mine, other in ((left, right), (right, left))
    )
    summed = [c for c in left if c in right and c not in out]
    letters = (*both, *rows, *summed, *columns)
    if len(rows) != 1 or len(columns) != 1 or len(summed) != 1 or set(letters) != set(left + right):
        return None
    turned = []
    for operand, term, order in (
        (operands[0], left, [*both, *rows, *summed]),
        (operands[1], right, [*both, *summed, *columns]),
    ):
        assert isinstance(operand, fx.Node)
        turned.append(_permuted(regions, node, operand, [term.index(c) for c in order]))
    product = regions.rewriter.call(node, aten.matmul.default, *turned)
    made = [*both, *rows, *columns]
    return _permuted(regions, node, product, [made.index(c) for c in out])


def _permuted(regions: Regions, like: fx.Node, node: fx.Node, order: list[int]) -> fx.Node:
    if order == sorted(order):
        return node
    return regions.followed(regions.rewriter.call(like, aten.permute.default, node, order))


def _for_every_head(regions: Regions, like: fx.Node, operand: fx.Node, query: fx.Node) -> fx.Node:
    """Repeat the heads of keys or values that several heads of queries share."""
    rank = operand.meta["val"].dim()
    times = int(query.meta["val"].shape[-3]) // int(operand.meta["val"].shape[-3])
    if times == 1:
        return operand
    call, shape = regions.rewriter.call, [int(n) for n in operand.meta["val"].shape[-3:]]
    wide = regions.followed(call(like, aten.unsqueeze.default, operand, rank - 2))
    sizes = [-1] * (rank - 2)
    wide = regions.followed(call(like, aten.expand.default, wide, [*sizes, times, -1, -1]))
    heads = [-1] if rank == 4 else [-1, *(int(n) for n in operand.meta["val"].shape[1:-3])]
    return regions.followed(call(like, aten.reshape.default, wide, [*heads, shape[0] * times, *shape[1:]]))


def attention(regions: Regions, node: fx.Node) -> fx.Node | None:
    """Add an attention's products and softmax before it, if its keys and values have segments; return the last."""
    assert isinstance(node.target, torch._ops.OpOverload)
    given: dict[str, Any] = {a.name: a.default_value for a in node.target._schema.arguments}
    given.update(zip(given, node.args, strict=False))
    given.update(node.kwargs)
    query, key, value = given["query"], given["key"], given["value"]
    for operand in (key, value):
        found = regions.known.get(operand)
        if found is None or not found.plain or found.axis != operand.meta["val"].dim() - 2:
            return None
    length, width = (int(s) for s in query.meta["val"].shape[-2:])
    keys = int(key.meta["val"].shape[-2])
    if given["dropout_p"] or (length != keys and not _asks_for_all(regions, node)):
        return None
    call = regions.rewriter.call
    if given["enable_gqa"]:
        key, value = (_for_every_head(regions, node, operand, query) for operand in (key, value))
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(width)
    turned = regions.followed(call(node, aten.transpose.int, key, -2, -1))
    scores = call(node, aten.matmul.default, call(node, aten.mul.Scalar, query, scale), turned)
    mask, sees = given["attn_mask"], True
    if given["is_causal"]:
        if regions.rewriter.folds:
            later = regions.rewriter.constant(f"later{length}", torch.ones(length, keys, dtype=torch.bool).triu(1))
        else:
            every = call(node, aten.full.default, [length, keys], True, dtype=torch.bool)
            later = call(node, aten.triu.default, every, 1)
        scores = call(node, aten.masked_fill.Scalar, scores, later, -math.inf)
    elif mask is not None and mask.meta["val"].dtype is torch.bool:
        scores = call(node, aten.masked_fill.Scalar, scores, call(node, aten.logical_not.default, mask), -math.inf)
    elif mask is not None:
        scores = call(node, aten.add.Tensor, scores, mask)
    if mask is not None:
        constant = regions.rewriter.value(mask)
        constant = None if constant is None or constant.is_meta else constant
        dark = constant is None or (~constant if constant.dtype is torch.bool else constant == -math.inf)
        sees = isinstance(dark, torch.Tensor) and not bool(dark.all(-1).any())
    # Attention gives 0, not NaN, for a row that sees nothing.
    softmax = aten.softmax.int if sees else aten._safe_softmax.default
    return call(node, aten.matmul.default, call(node, softmax, scores, -1), value)
