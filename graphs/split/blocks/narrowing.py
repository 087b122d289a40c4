"""Compute only the positions that are read: of the last layer, often the last position alone."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from graphs.base.cost import gemm_flops
from graphs.split.blocks.known_values import KnownValues
from graphs.split.blocks.region_moves import CUTS
from graphs.split.blocks.regions import Regions
from graphs.split.column_provenance import kept_axis, squeezed_axes
from graphs.split.prune_columns import sliced
from graphs.split.rewriter import Rewriter

aten = torch.ops.aten

_SAME = (
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.dropout.default, aten._to_copy.default,
    aten.to.dtype,
)  # fmt: skip
_VIEWS = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
)  # fmt: skip


def narrow_positions(rewriter: Rewriter) -> None:
    """Push a selection of positions up through all that is computed for it alone."""
    for node in reversed(list(rewriter.graph.nodes)):
        taken = _taken(node) if node.op == "call_function" and rewriter.sides.get(node) == "item" else None
        if taken is None:
            continue
        source, axis, low, high = taken
        alone = _read_alone(rewriter.graph, node, source, axis)
        if not any(gemm_flops(n) for n in alone):
            continue
        regions = Regions(rewriter, {}, KnownValues(rewriter), within=alone.keys())
        part = regions.of(node, source, {axis: ((low, high),)})
        selects = node.target is aten.select.int
        rewriter.replace(node, rewriter.call(node, aten.select.int, part, axis, 0) if selects else part)


def _taken(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    """Return the tensor, axis and positions of a selection of some positions of an axis, all but the batch's."""
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    if node.target is aten.slice.Tensor:
        axis, bounds = sliced(node)
    else:
        axis, index = int(node.args[1]) % len(shape), int(node.args[2])  # type: ignore[arg-type]  # ints
        at = 0 if isinstance(shape[axis], torch.SymInt) else index % int(shape[axis])
        bounds = (at, at + 1)
    if bounds is None or isinstance(shape[axis], torch.SymInt) or bounds[1] - bounds[0] in (0, shape[axis]):
        return None
    return source, axis, *bounds


def _read_alone(graph: fx.Graph, reader: fx.Node, source: fx.Node, axis: int) -> dict[fx.Node, int]:
    """Return the nodes of which ``reader`` needs the positions it takes only, and the axis of the positions."""
    live = _live(graph)
    found: dict[fx.Node, int] = {}
    order = list(graph.nodes)
    for node in reversed(order[: order.index(reader)]):
        if node.op != "call_function" or node not in live:
            continue
        axes = set()
        for user in node.users:
            if user not in live:
                continue
            own = axis if user is reader and node is source else None
            axes.add(own if user is reader else _operand_axis(user, node, found))
        if len(axes) == 1 and (only := axes.pop()) is not None:
            found[node] = only
    return found


def _live(graph: fx.Graph) -> set[fx.Node]:
    live: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node.op == "output" or node in live:
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def _operand_axis(node: fx.Node, operand: fx.Node, found: Mapping[fx.Node, int]) -> int | None:
    """Return the axis of an operand whose positions are those of the result's axis; None if more of it is needed."""
    axis = found.get(node)
    target: Any = node.target
    if axis is None or [*node.all_input_nodes].count(operand) != 1:
        return None
    if target in CUTS or target is operator.getitem:
        dim = (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) if target in CUTS else None
        return None if isinstance(dim, int) and dim % operand.meta["val"].dim() == axis else axis
    if not isinstance(node.meta.get("val"), Tensor) or not isinstance(operand.meta.get("val"), Tensor):
        return None
    rank, inner = int(node.meta["val"].dim()), int(operand.meta["val"].dim())
    first = bool(node.args) and node.args[0] is operand
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        own = axis - (rank - inner)
        return own if own >= 0 and operand.meta["val"].shape[own] != 1 else None
    if target is aten.cat.default:
        dim = int(node.args[1] if len(node.args) > 1 else 0) % rank  # type: ignore[arg-type]  # an int
        return axis if dim != axis else None
    if not first:
        return None
    if target in _SAME:
        return axis
    if target in (aten.matmul.default, aten.bmm.default):
        return axis if inner == rank and axis == rank - 2 and node.args[1] is not operand else None
    if target is aten.linear.default:
        return axis if axis < rank - 1 else None
    if target in (aten.layer_norm.default, aten.rms_norm.default):
        return axis if axis < rank - len(node.args[1]) else None  # type: ignore[arg-type]  # a list of sizes
    if target in (aten.softmax.int, aten._safe_softmax.default):
        return axis if int(node.args[1]) % rank != axis else None  # type: ignore[arg-type]  # an int
    if target in _VIEWS:
        return kept_axis(operand.meta["val"].shape, node.meta["val"].shape, axis)
    if target is aten.transpose.int:
        a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]  # ints
        return b if axis == a else a if axis == b else axis
    if target is aten.permute.default:
        order = [int(d) for d in node.args[1]]  # type: ignore[union-attr, arg-type]  # a list of ints
        return order[axis] % int(rank)
    if target in (aten.squeeze.dim, aten.squeeze.dims):
        gone = squeezed_axes(node)
        return [a for a in range(inner) if a not in gone][axis]
    if target is aten.slice.Tensor:
        return axis if sliced(node)[0] != axis else None
    return None
