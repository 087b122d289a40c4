"""Products of all pairs of a row's vectors, of which constant positions are read: DLRM's dots of features.

With the vectors [U; G], the pairs of two user vectors are computed once per request, ``U U^T``; per candidate there
remain ``G U^T``, ``U G^T`` and ``G G^T``, and of these only the ones that are read.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import fx

from graphs.split.blocks.known_values import Ranges
from graphs.split.blocks.regions import MOST_RUNS, Regions
from graphs.split.column_provenance import Provenance, is_user, merged

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints)


@dataclass(frozen=True)
class _Side:
    """The positions of one axis: whether each is the user's, and where it is among those of its side."""

    user: list[bool]
    within: list[int]
    ranges: dict[bool, Ranges]


def pairs(regions: Regions, node: fx.Node) -> Provenance | None:
    """Follow a lookup of constant positions in a product of data with data: runs of user pairs and of the others."""
    found = _read(regions, node)
    if found is None:
        return None
    product, rows, columns = found
    sides = [_side(regions, product.args[i], axis) for i, axis in ((0, 1), (1, 2))]
    if sides[0] is None or sides[1] is None:
        return None
    down, across = sides[0], sides[1]
    blocks = [(down.user[r], across.user[c]) for r, c in zip(rows, columns, strict=True)]
    runs = [(user, len(list(run))) for user, run in itertools.groupby(blocks, key=all)]
    if len(runs) == 1 or len(runs) > MOST_RUNS:
        return None
    call = regions.rewriter.call
    flat: dict[bool, fx.Node] = {}
    starts: dict[tuple[bool, bool], tuple[int, int]] = {}  # where a block starts, and the length of its rows
    for user in (True, False):
        at, made = 0, []
        for block in sorted({b for b in blocks if all(b) == user}):
            high, wide = down.ranges[block[0]], across.ranges[block[1]]
            part = regions.of(node, product, {1: high, 2: wide})
            length, width = (sum(b - a for a, b in r) for r in (high, wide))
            made.append(call(node, aten.reshape.default, part, [-1, length * width]))
            starts[block] = (at, width)
            at += length * width
        flat[user] = regions.joined(node, made, 1)
    parts, first = [], 0
    for user, count in runs:
        at_run = range(first, first + count)
        index = [
            starts[blocks[i]][0] + down.within[rows[i]] * starts[blocks[i]][1] + across.within[columns[i]]
            for i in at_run
        ]
        chosen = regions.rewriter.constant("pairs", torch.tensor(index))
        parts.append(call(node, aten.index_select.default, flat[user], 1, chosen))
        first += count
    return merged(regions.rewriter, node, 1, parts)


def _read(regions: Regions, node: fx.Node) -> tuple[fx.Node, list[int], list[int]] | None:
    """Return the product [B, R, C] that a lookup reads, and the rows and columns it takes."""
    source = node.args[0]
    if node.target is aten.index_select.default:
        indices = [None, node.args[2]] if node.args[1] in (1, -1) else []
    else:
        given = node.args[1]
        indices = list(given) if isinstance(given, (list, tuple)) else []
    if len(indices) not in (2, 3) or indices[0] is not None:
        return None
    values = [regions.rewriter.value(i) for i in indices[1:]]
    if any(v is None or v.dim() != 1 or v.dtype is not torch.int64 or v.is_meta for v in values):
        return None
    product = _behind_slices(source)
    if product is not None and len(values) == 1:
        if product.target not in _VIEWS:
            return None
        product = _behind_slices(product.args[0])
    if product is None or product.target not in (aten.matmul.default, aten.bmm.default):
        return None
    shape = product.meta["val"].shape
    if len(shape) != 3 or any(isinstance(s, torch.SymInt) for s in shape[1:]):
        return None
    high, wide = int(shape[1]), int(shape[2])
    lists = [[int(i) for i in v] for v in values if v is not None]
    if len(lists) == 1:
        if node.args[0].meta["val"].dim() != 2:  # type: ignore[union-attr]  # a node
            return None
        places = [i % (high * wide) for i in lists[0]]
        return product, [p // wide for p in places], [p % wide for p in places]
    return product, [r % high for r in lists[0]], [c % wide for c in lists[1]]


def _behind_slices(node: object) -> fx.Node | None:
    while isinstance(node, fx.Node) and node.op == "call_function":
        source = node.args[0] if node.args else None
        whole = node.target in (aten.slice.Tensor, aten.clone.default, aten.contiguous.default)
        if not whole or not isinstance(source, fx.Node) or source.meta["val"].shape != node.meta["val"].shape:
            return node
        node = source
    return None


def _side(regions: Regions, operand: object, axis: int) -> _Side | None:
    found = regions.known.get(operand) if isinstance(operand, fx.Node) else None
    if found is None or not found.plain or found.axis != axis:
        return None
    user: list[bool] = []
    within: list[int] = []
    ranges: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for segment, length in zip(found.segments, found.sizes(), strict=True):
        mine = is_user(regions.rewriter, segment)
        start = user.count(mine)
        within.extend(range(start, start + length))
        ranges[mine].append((len(user), len(user) + length))
        user.extend([mine] * length)
    return _Side(user, within, {k: tuple(v) for k, v in ranges.items()})
