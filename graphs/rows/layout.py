"""The row axis of a tensor, and a call of an op with the row axes of its arguments."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_symbols, free_unbacked_symbols

from graphs.base.cost import static
from graphs.rows.sides import is_row_count

aten = torch.ops.aten


@dataclass(frozen=True)
class Rows:
    """Axis ``axis`` carries the rows and has size ``outer * batch * inner``, row-major."""

    axis: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class Position:
    """The tensor is ``step`` times the position of a row in the batch (an arange), which may only index."""

    step: int


class NoRows(Enum):
    """A tensor without a row axis: the same values for any batch, or a single value (zeros, ones) in any shape."""

    CONSTANT = auto()
    UNIFORM = auto()


CONSTANT: Literal[NoRows.CONSTANT] = NoRows.CONSTANT
UNIFORM: Literal[NoRows.UNIFORM] = NoRows.UNIFORM
Layout: TypeAlias = Rows | Position | NoRows | tuple["Layout", ...]


class MixesRows(Exception):
    """An op lets one row influence another; the message continues "op in module" with the problem and its fix."""


def symbolic_axes(value: Tensor) -> dict[int, int]:
    """Return the axes of symbolic size with their size for one row; reject data-dependent sizes."""
    axes: dict[int, int] = {}
    for axis, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt):
            if free_unbacked_symbols(size):
                raise MixesRows("has a shape that depends on data; pad to a fixed length and use a mask")
            if free_symbols(size):
                axes[axis] = static(size)
    return axes


def promote(layout: Layout, value: Tensor) -> Layout:
    """Give a uniform tensor the row axis of its shape, so that it can be combined with tensors of rows."""
    if layout is not UNIFORM:
        return layout
    axes = symbolic_axes(value)
    if not axes:
        return CONSTANT
    (axis, size), *more = axes.items()
    return UNIFORM if more or size != 1 else Rows(axis)


class Call:
    """A call of an op, with its arguments by schema name and the layouts found so far."""

    def __init__(self, node: fx.Node, found: Mapping[fx.Node, Layout]) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        self.node = node
        self.found = found
        self.target = node.target
        self.name = node.target._schema.name.split("::")[1]
        self.arguments: dict[str, Any] = {}
        for position, declared in enumerate(node.target._schema.arguments):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(declared.name)
            self.arguments[declared.name] = declared.default_value if given is None else given

    def of(self, node: object) -> Layout:
        """Return the layout of an argument, promoted; numbers and absent tensors are constant."""
        if not isinstance(node, fx.Node) or is_row_count(node):
            return CONSTANT
        return promote(self.found[node], node.meta["val"])

    def tensors(self) -> list[fx.Node]:
        """Return the tensor arguments, list elements included."""
        return [n for n in self.node.all_input_nodes if not is_row_count(n)]

    def first(self) -> fx.Node:
        """Return the first tensor argument."""
        return self.tensors()[0]

    def dims(self, node: fx.Node, name: str = "dim") -> list[int]:
        """Return an axis argument as non-negative axes of ``node``; all axes if it is absent or empty."""
        rank = node.meta["val"].dim()
        given = self.arguments.get(name)
        if given is None or given == []:
            return list(range(rank))
        return [d % rank for d in (given if isinstance(given, (list, tuple)) else [given])] if rank else []


def with_adopted_rows(call: Call) -> Call:
    """Return the call with uniform tensors along the rows of the others, where axis and size are the same.

    Rows times heads of zeros, as ``nn.MultiheadAttention(add_zero_attn=True)`` joins to its keys, fit any order of
    rows and heads: their values are all the same.
    """
    rows = {(r.axis - n.meta["val"].dim(), r) for n in call.tensors() if isinstance(r := call.of(n), Rows)}
    if len({(back, r.outer, r.inner) for back, r in rows}) != 1:
        return call
    back, found = rows.pop()
    adopted: dict[fx.Node, Layout] = {}
    for node in call.tensors():
        axis = back + node.meta["val"].dim()
        if call.of(node) is UNIFORM and symbolic_axes(node.meta["val"]) == {axis: found.outer * found.inner}:
            adopted[node] = Rows(axis, found.outer, found.inner)
    return Call(call.node, ChainMap(adopted, dict(call.found)))


def agree(layouts: list[Layout]) -> Layout:
    """Return the row axis that all operands share."""
    rows = {x for x in layouts if isinstance(x, Rows)}
    if UNIFORM in layouts:
        raise MixesRows("is applied to a tensor with more than one batch axis; keep one")
    if len(rows) > 1:
        raise MixesRows("combines tensors whose rows are along different axes; permute them to the same layout first")
    return rows.pop() if rows else CONSTANT


def aligned(call: Call, nodes: list[fx.Node], rank: int) -> Layout:
    """Return the shared row axis after broadcasting to ``rank`` axes."""
    layouts: list[Layout] = []
    for node in nodes:
        layout = call.of(node)
        shift = rank - node.meta["val"].dim()
        layouts.append(Rows(layout.axis + shift, layout.outer, layout.inner) if isinstance(layout, Rows) else layout)
    return agree(layouts)
