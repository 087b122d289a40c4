"""Products of data with data in one form: attention, einsums and transposes as matmul, softmax and ``transpose``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from graphs.split.blocks.regions import Regions

aten = torch.ops.aten

__all__ = ["attention", "simplified"]


def simplified(regions: Regions, node: fx.Node) -> list[fx.Node]:
    """Replace an einsum of two tensors with segments, or a transpose by another name; return what is now to visit."""
    call, result = regions.rewriter.call, None
    if node.target is aten.mT.default or (node.target is aten.t.default and node.meta["val"].dim() == 2):
        result = call(node, aten.transpose.int, node.args[0], -2, -1)
    elif node.target is aten.einsum.default:
        result = _product(regions, node)
    if result is None:
        return [node]
    regions.rewriter.replace(node, result)
    # The permutation of a product comes after it.
    return [result] if result.target is not aten.permute.default else [*result.all_input_nodes, result]


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
    if given["dropout_p"] or given["enable_gqa"] or length != key.meta["val"].shape[-2]:
        return None
    call = regions.rewriter.call
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(width)
    turned = regions.followed(call(node, aten.transpose.int, key, -2, -1))
    scores = call(node, aten.matmul.default, call(node, aten.mul.Scalar, query, scale), turned)
    mask, sees = given["attn_mask"], True
    if given["is_causal"]:
        later = regions.rewriter.constant(f"later{length}", torch.ones(length, length, dtype=torch.bool).triu(1))
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
