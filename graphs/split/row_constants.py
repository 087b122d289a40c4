"""What is computed from constants and the number of rows alone: the same in every row, so it is computed once.

A causal mask is often made for all rows: from positions that are expanded to them, counted by ``cumsum``, or looked
up by ``arange(N)``. What such a mask holds in a row depends on no input, so it becomes a constant of one row, which
later ops broadcast. A lookup of every row at its own position, ``x[arange(N)[:, None], k]``, becomes ``x[:, k]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from graphs.rows.reach import ancestors
from graphs.rows.row_values import ROWS, row_axis, same_in_every_row, values_of_rows
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten

__all__ = ["fold_row_constants"]

# What only gives a constant to all rows stays: later steps know it.
_TRIVIAL = {
    aten.expand.default, aten.expand_as.default, aten.repeat.default, aten.unsqueeze.default, aten.view.default,
    aten.reshape.default, aten.clone.default, aten.alias.default, aten._to_copy.default, aten.full.default,
    aten.zeros.default, aten.ones.default, aten.full_like.default, aten.zeros_like.default, aten.ones_like.default,
    aten.new_full.default, aten.new_zeros.default, aten.new_ones.default, aten.scalar_tensor.default,
}  # fmt: skip


def fold_row_constants(rewriter: Rewriter) -> None:
    """Replace what is the same in every row by constants, and lookups at a row's own position, in place.

    What reads parameters stays, so that weights keep their names.
    """
    read = [n for n in rewriter.graph.nodes if _is_read(rewriter, n)]
    if not read:
        return
    values = values_of_rows(rewriter.graph, read, rewriter.tensors.__getitem__)
    for node in read:
        value = values.get(node)
        if value is None:
            continue
        for user in [u for u in node.users if rewriter.sides.get(u) != "neutral"]:
            if user.target is aten.index.Tensor and _is_position(node, value):
                _look_up_own_row(rewriter, user, node, values)
    for node in read:
        value = values.get(node)
        if value is not None and node.users and _is_worth_it(rewriter, node):
            _fold(rewriter, node, value)


def _is_read(rewriter: Rewriter, node: fx.Node) -> bool:
    """Return whether a tensor of all rows, computed without inputs, is read by what is computed from them."""
    if node.op != "call_function" or rewriter.sides[node] != "neutral" or not _has_rows(node):
        return False
    return any(rewriter.sides.get(user) != "neutral" for user in node.users)


def _has_rows(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and any(isinstance(s, torch.SymInt) for s in value.shape)


def _is_worth_it(rewriter: Rewriter, node: fx.Node) -> bool:
    """Return whether more than a constant is given to all rows."""
    computed = (n for n in ancestors([node]) if n.op == "call_function" and _has_rows(n))
    return any(n.target not in _TRIVIAL for n in computed)


def _fold(rewriter: Rewriter, node: fx.Node, value: Tensor) -> None:
    """Replace a tensor that is the same in every row by a constant of one row."""
    axis, row = row_axis(node), same_in_every_row(node, value)
    if axis is None or row is None:
        return
    constant = rewriter.constant(f"{node.name}_row", row)
    whole: fx.Node | None = None
    for user in list(node.users):
        if rewriter.sides.get(user) == "neutral":
            continue
        if _broadcasts(user, node, axis):
            user.replace_input_with(node, constant)
            continue
        if whole is None:
            sizes: list[Any] = list(node.meta["val"].shape)
            sizes[axis] = _rows(rewriter, node)
            whole = rewriter.call(node, aten.expand.default, constant, sizes)
        user.replace_input_with(node, whole)


def _rows(rewriter: Rewriter, like: fx.Node) -> fx.Node:
    first = next(n for n in rewriter.graph.nodes if n.op == "placeholder")
    return rewriter.call(like, aten.sym_size.int, first, 0)


def _broadcasts(user: fx.Node, node: fx.Node, axis: int) -> bool:
    """Return whether an op gives the same result if the tensor has one row, since another operand has all rows."""
    target = user.target
    if target is aten.scaled_dot_product_attention.default:
        mask = user.args[3] if len(user.args) > 3 else user.kwargs.get("attn_mask")
        return mask is node and node not in user.args[:3]
    value = user.meta.get("val")
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return False
    if not isinstance(value, Tensor):
        return False
    from_end = node.meta["val"].dim() - axis
    others = [n.meta["val"].shape for n in user.all_input_nodes if n is not node and _has_rows(n)]
    # An op that writes its first operand's shape, as copy does, is not asked to broadcast that.
    first = user.args[0] is node and target._schema.name.split("::")[1] in ("masked_fill", "copy", "fill")
    return not first and any(len(s) >= from_end and isinstance(s[-from_end], torch.SymInt) for s in others)


def _is_position(node: fx.Node, value: Tensor) -> bool:
    """Return whether a tensor holds the position of each row, along its only axis that is longer than 1."""
    axis = row_axis(node)
    if axis is None or value.numel() != ROWS or value.dtype is not torch.int64:
        return False
    return value.flatten().tolist() == list(range(ROWS))


def _look_up_own_row(rewriter: Rewriter, user: fx.Node, at: fx.Node, values: dict[fx.Node, Any]) -> None:
    """Replace ``x[rows, k]`` by ``x[:, k]`` if the rows are the first axis of x and of the result."""
    source, indices = user.args
    assert isinstance(source, fx.Node)
    assert isinstance(indices, (list, tuple))
    shape, out = source.meta["val"].shape, user.meta["val"].shape
    if len(indices) != 2 or indices[0] is not at or not _has_rows(source) or not isinstance(shape[0], torch.SymInt):
        return
    places = rewriter.value(indices[1])
    if not isinstance(indices[1], fx.Node) or (places is None and indices[1] not in values):
        return
    places = values[indices[1]] if places is None else places
    rank = max(at.meta["val"].dim(), places.dim())
    wide = places.reshape(*[1] * (rank - places.dim()), *places.shape)
    alone = at.meta["val"].dim() == rank and row_axis(at) == 0 and wide.shape[0] in (1, ROWS)
    if places.dtype is not torch.int64 or not alone or isinstance(shape[1], torch.SymInt):
        return
    if not torch.equal(wide, wide[:1].expand_as(wide)) or not isinstance(out[0], torch.SymInt):
        return
    chosen = wide[0].flatten() % int(shape[1])
    picked = source
    if chosen.tolist() != list(range(int(shape[1]))):
        picked = rewriter.call(
            user, aten.index_select.default, source, 1, rewriter.constant(f"{user.name}_places", chosen)
        )
    result = rewriter.call(user, aten.reshape.default, picked, [-1, *(int(s) for s in out[1:])])
    rewriter.replace(user, result)
