"""How ops that move, slice, join or index data carry the row axis."""

from __future__ import annotations

import math

import torch

from graphs.base.cost import static
from graphs.rows.layout import CONSTANT, Call, Layout, MixesRows, Position, Rows, agree, aligned, symbolic_axes


def same(call: Call) -> Layout:
    """Element-wise ops on the first tensor keep shape and layout."""
    source, *others = call.tensors()
    if call.name != "type_as" and any(call.of(n) is not CONSTANT for n in others):
        raise MixesRows("compares rows with values computed from other rows; use constants")
    return call.of(source)


def view(call: Call) -> Layout:
    """Reshapes keep rows apart if the axes before and after the rows are reshaped separately."""
    source = call.first()
    layout = call.of(source)
    if not isinstance(layout, Rows):
        return layout
    before, after = source.meta["val"].shape, call.node.meta["val"].shape
    outer = math.prod(static(s) for s in before[: layout.axis]) * layout.outer
    inner = math.prod(static(s) for s in before[layout.axis + 1 :]) * layout.inner
    axis = next((i for i in symbolic_axes(call.node.meta["val"])), None)
    assert axis is not None
    left, right = (math.prod(static(s) for s in sizes) for sizes in (after[:axis], after[axis + 1 :]))
    if outer % left or inner % right:
        shapes = f"{tuple(str(s) for s in before)} to {tuple(str(s) for s in after)}"
        raise MixesRows(f"reshapes {shapes} across rows; move the batch axis with transpose, not with view")
    return Rows(axis, outer // left, inner // right)


def permute(call: Call) -> Layout:
    """Permutations move the row axis."""
    source = call.first()
    layout, rank = call.of(source), source.meta["val"].dim()
    if not isinstance(layout, Rows):
        return layout
    order = list(range(rank))
    if call.name in ("permute", "permute_copy"):
        order = [d % rank for d in call.arguments["dims"]]
    elif call.name in ("movedim", "moveaxis"):
        moved = dict(zip(call.dims(source, "destination"), call.dims(source, "source"), strict=True))
        rest = iter(d for d in range(rank) if d not in moved.values())
        order = [moved[d] if d in moved else next(rest) for d in range(rank)]
    elif rank > 1:
        a, b = ((call.arguments[k] % rank) for k in ("dim0", "dim1")) if "dim0" in call.arguments else (-2, -1)
        order[a], order[b] = order[b], order[a]
    return Rows(order.index(layout.axis), layout.outer, layout.inner)


def expand(call: Call) -> Layout:
    """Broadcasting other axes keeps the size of the row axis."""
    source = call.first()
    layout = call.of(source)
    return layout if isinstance(layout, Position) else aligned(call, [source], call.node.meta["val"].dim())


def repeat(call: Call) -> Layout:
    """Tiling the row axis adds an outer factor."""
    source = call.first()
    layout = call.of(source)
    assert isinstance(layout, Rows)
    repeats = call.arguments["repeats"]
    axis = layout.axis + len(repeats) - source.meta["val"].dim()
    if not isinstance(repeats[axis], int):
        raise MixesRows("repeats the rows once per row; keep one result row per input row")
    return Rows(axis, layout.outer * repeats[axis], layout.inner)


def repeat_interleave(call: Call) -> Layout:
    """Repeating each element of the row axis adds an inner factor."""
    source = call.first()
    layout, times = call.of(source), call.arguments["repeats"]
    if not isinstance(layout, Rows) or not isinstance(times, int) or call.arguments.get("dim") is None:
        raise MixesRows("repeats rows a data-dependent number of times; use a fixed number")
    repeated = layout.axis in call.dims(source)
    return Rows(layout.axis, layout.outer, layout.inner * (times if repeated else 1))


def take(call: Call) -> Layout:
    """Selects, slices, splits and unbinds along ``dim``."""
    source = call.first()
    layout = call.of(source)
    if call.name == "slice" and source.meta["val"].shape == call.node.meta["val"].shape:
        return layout
    (dim,) = call.dims(source)
    if not isinstance(layout, Rows) or dim == layout.axis:
        raise MixesRows("picks rows by their position in the batch; keep every operation within a row")
    gone = call.name in ("select", "unbind") and dim < layout.axis
    return Rows(layout.axis - gone, layout.outer, layout.inner)


def scatter_slice(call: Call) -> Layout:
    """Writes to a slice or one position along ``dim``."""
    source, written = call.arguments["self"], call.arguments["src"]
    layout, inner = call.of(source), call.of(written)
    (dim,) = call.dims(source)
    if call.name == "select_scatter" and isinstance(inner, Rows):
        inner = Rows(inner.axis + (dim <= inner.axis), inner.outer, inner.inner)
    merged = agree([layout, inner])
    whole = call.name == "slice_scatter" and source.meta["val"].shape == written.meta["val"].shape
    if isinstance(merged, Rows) and merged.axis == dim and not whole:
        raise MixesRows("writes rows by their position in the batch; keep every operation within a row")
    return merged


def join(call: Call) -> Layout:
    """Concatenation and stacking along any axis but the rows."""
    layouts: list[Layout] = [call.of(n) for n in call.arguments["tensors"]]
    merged = agree(layouts)
    assert isinstance(merged, Rows)
    rank = call.node.meta["val"].dim()
    dim = call.arguments["dim"] % rank
    if call.name == "stack":
        merged = Rows(merged.axis + (dim <= merged.axis), merged.outer, merged.inner)
    if merged.axis == dim:
        raise MixesRows("joins tensors along the batch axis; keep one result row per input row")
    return merged


def pad(call: Call) -> Layout:
    """Padding of any axis but the rows."""
    source = call.first()
    layout = call.of(source)
    assert isinstance(layout, Rows)
    back = source.meta["val"].dim() - 1 - layout.axis
    if any(call.arguments["pad"][2 * back : 2 * back + 2]):
        raise MixesRows("pads the batch axis; keep one result row per input row")
    return layout


def index(call: Call) -> Layout:
    """Advanced indexing may address rows only by torch.arange(batch)."""
    source, indices = call.arguments["self"], call.arguments["indices"]
    table = call.of(source)
    shown = list(symbolic_axes(call.node.meta["val"]))
    given = [n for n in indices if n is not None]
    layouts = [call.of(n) for n in given]
    if len(shown) != 1:
        raise MixesRows("indexes to a result without exactly one batch axis; keep one result row per input row")
    if not isinstance(table, Rows):
        if any(isinstance(x, Position) for x in (table, *layouts)):
            raise MixesRows("reads a table by the position of a row in the batch; index with data")
        found = aligned(call, given, max(n.meta["val"].dim() for n in given))
        assert isinstance(found, Rows)
        return Rows(shown[0], found.outer, found.inner)
    at_rows = indices[table.axis] if table.axis < len(indices) else None
    if at_rows is None and all(x is CONSTANT for x in layouts):
        return Rows(shown[0], table.outer, table.inner)
    others = [n for n in given if n is not at_rows]
    if at_rows is not None and call.found[at_rows] == Position(1) and (table.outer, table.inner) == (1, 1):
        rank = max(n.meta["val"].dim() for n in given)
        axis = next(iter(symbolic_axes(at_rows.meta["val"]))) + rank - at_rows.meta["val"].dim()
        if aligned(call, others, rank) in (CONSTANT, Rows(axis)):
            return Rows(shown[0])
    raise MixesRows("indexes the batch axis with data; use torch.gather or [torch.arange(batch), index]")


def index_put(call: Call) -> Layout:
    """Writes of constants to constant positions, or of a number under a mask of the rows."""
    source, indices, values = (call.arguments[n] for n in ("self", "indices", "values"))
    layout = call.of(source)
    given = [n for n in indices if n is not None]
    masks = len(given) == 1 and given[0].meta["val"].dtype is torch.bool
    if masks and indices[0] is not None and call.of(given[0]) == layout and call.of(values) is CONSTANT:
        if math.prod(values.meta["val"].shape) == 1:
            return layout  # x[mask] = number
    if not isinstance(layout, Rows) or any(call.of(n) is not CONSTANT for n in (*given, values)):
        raise MixesRows("writes to computed positions; use torch.where or torch.scatter along another axis")
    if layout.axis < len(indices) and indices[layout.axis] is not None:
        raise MixesRows("writes rows by their position in the batch; keep every operation within a row")
    return layout


def not_last_two(call: Call) -> Layout:
    """Ops on the last two axes (triangles), neither of which may be the rows."""
    layout = call.of(call.first())
    if isinstance(layout, Rows) and layout.axis >= call.first().meta["val"].dim() - 2:
        raise MixesRows("works across the batch axis; keep every operation within a row")
    return layout
