"""FLOPs and bytes of a traced graph, per row: two per multiply-add, one per element of an element-wise op.

torch's FlopCounterMode gives the same counts for products (tests compare them), but it has to run the op: ten times
slower per product, 1.2 s for an LSTM over 200 steps. It also counts neither matrix-vector nor outer products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_CONTRACTIONS = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default}
_FREE = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.transpose.int, aten.permute.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.expand.default,
    aten.select.int, aten.slice.Tensor, aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default,
    aten.chunk.default, aten.flatten.using_ints, aten.unflatten.int, aten.t.default, aten.detach.default,
    aten.alias.default, aten.embedding.default, aten.index.Tensor, aten.index_select.default, aten.cat.default,
    aten.stack.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default,
    aten.constant_pad_nd.default,
}  # fmt: skip


@dataclass(frozen=True)
class SideCost:
    """Cost of one side: FLOPs per row, bytes of the weights it reads, and bytes of its embedding tables."""

    flops: int
    gemm_flops: int
    weight_bytes: int
    table_bytes: int


def static(value: Any) -> int:
    """Return a size for a batch of one row."""
    if isinstance(value, torch.SymInt):
        expression: Any = value.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return int(value)


def numel(value: torch.Tensor) -> int:
    """Return the number of elements per row of a traced tensor."""
    return static(value.numel())


def nbytes(node: fx.Node) -> int:
    """Return the bytes per row of a node's tensor."""
    value = node.meta["val"]
    return numel(value) * int(value.element_size())


def gemm_flops(node: fx.Node) -> int:
    """Return the FLOPs per row of a product, convolution or recurrence, 0 for any other node."""
    if node.op != "call_function":
        return 0
    target: Any = node.target
    if target in _CONTRACTIONS or target in (aten.addmm.default, aten.baddbmm.default):
        left = node.args[0 if target in _CONTRACTIONS else 1]
        assert isinstance(left, fx.Node)
        return 2 * numel(node.meta["val"]) * static(left.meta["val"].shape[-1])
    if target is aten.scaled_dot_product_attention.default:
        query, key = node.args[0], node.args[1]
        assert isinstance(query, fx.Node)
        assert isinstance(key, fx.Node)
        q, k = query.meta["val"], key.meta["val"]
        return 2 * numel(q) * static(k.shape[-2]) + 2 * numel(node.meta["val"]) * static(k.shape[-2])
    if target in (aten.conv1d.default, aten.conv2d.default, aten.convolution.default):
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        return 2 * numel(node.meta["val"]) * numel(weight.meta["val"]) // static(weight.meta["val"].shape[0])
    if target in (aten.einsum.default, aten.gru.input, aten.lstm.input):
        return _recurrent_or_einsum(node)
    return 0


def _recurrent_or_einsum(node: fx.Node) -> int:
    if node.target is aten.einsum.default:
        operands = node.args[1]
        equation = str(node.args[0])
        assert isinstance(operands, (list, tuple))
        sizes: dict[str, int] = {}
        for term, operand in zip(equation.split("->")[0].split(","), operands, strict=True):
            assert isinstance(operand, fx.Node)
            sizes.update({c: static(s) for c, s in zip(term.strip(), operand.meta["val"].shape, strict=False)})
        return 2 * math.prod(sizes.values())
    inputs, weights = node.args[0], node.args[2]
    assert isinstance(inputs, fx.Node)
    assert isinstance(weights, (list, tuple))
    # Every time step multiplies each weight matrix once, whether sequences are batch first or time first.
    steps = numel(inputs.meta["val"]) // static(inputs.meta["val"].shape[-1])
    return (
        2 * steps * sum(numel(w.meta["val"]) for w in weights if isinstance(w, fx.Node) and w.meta["val"].dim() == 2)
    )


def flops(node: fx.Node) -> int:
    """Return the FLOPs per row of a node; data movement costs none."""
    dense = gemm_flops(node)
    value = node.meta.get("val")
    if dense or node.op != "call_function" or node.target in _FREE or not isinstance(value, torch.Tensor):
        return dense
    return numel(value)


def side_cost(nodes: Iterable[fx.Node]) -> SideCost:
    """Sum the cost of the nodes of one side, counting each parameter once."""
    total = dense = 0
    weights: dict[str, int] = {}
    tables: dict[str, int] = {}
    for node in nodes:
        total += flops(node)
        dense += gemm_flops(node)
        for source in node.all_input_nodes:
            if source.op == "get_attr" and isinstance(source.meta.get("val"), torch.Tensor):
                looked_up = node.target in (aten.embedding.default, aten.embedding_bag.padding_idx)
                (tables if looked_up else weights)[str(source.target)] = nbytes(source)
    return SideCost(total, dense, sum(weights.values()), sum(tables.values()))
