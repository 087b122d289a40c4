"""Ops that go through the positions of a sequence in order, so that the first ones, the user's, need no item.

    cumsum([U; G])            = [cumsum(U); cumsum(G) + the last of cumsum(U)]
    recurrence([U; G], h)     = [outputs of U from h; outputs of G from the state after U]
    conv([U; G]), kernel K    = [conv(U); conv([the last K - 1 of U; G])]

A padding before the sequence is the user's, as causal convolutions and token shifts have it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphs.split.blocks.regions import Regions
from graphs.split.column_provenance import Provenance, is_user, merged

aten = torch.ops.aten

__all__ = ["in_order"]


def in_order(regions: Regions, node: fx.Node) -> Provenance | None:
    """Return the segments of an op that goes through positions in order, None if it is none or starts at an item's.

    A recurrence, which returns several tensors, is replaced by its steps over the segments.
    """
    rule = _RULES.get(node.target)
    source = node.args[0] if node.args else None
    found = regions.known.get(source) if isinstance(source, fx.Node) else None
    if rule is None or found is None or not found.plain or not is_user(regions.rewriter, found.segments[0]):
        return None
    return rule(regions, node, found)


def _summed(regions: Regions, node: fx.Node, found: Provenance) -> Provenance | None:
    rewriter, dim = regions.rewriter, int(node.args[1]) % node.meta["val"].dim()  # type: ignore[arg-type]  # an int
    parts = [rewriter.call(node, node.target, s, dim, **node.kwargs) for s in found.segments]
    if dim != found.axis:
        return Provenance(found.axis, tuple(parts))
    for number, length in enumerate(found.sizes()[:-1]):
        last = rewriter.call(node, aten.slice.Tensor, parts[number], dim, length - 1, length)
        parts[number + 1] = rewriter.call(node, aten.add.Tensor, parts[number + 1], last)
    return merged(rewriter, node, dim, parts)


def _stepped(regions: Regions, node: fx.Node, found: Provenance) -> Provenance | None:
    _, start, *options = node.args
    _, _, _, _, train, bidirectional, batch_first = options
    if found.axis != int(bool(batch_first)) or train or bidirectional:
        return None
    rewriter, several = regions.rewriter, isinstance(start, (list, tuple))
    state: Any = start
    outputs: list[fx.Node] = []
    for segment in found.segments:
        step = rewriter.call(node, node.target, segment, state, *options)
        made = [rewriter.call(node, operator.getitem, step, i) for i in range(len(node.meta["val"]))]
        outputs.append(made[0])
        state = made[1:] if several else made[1]
    parts = merged(rewriter, node, found.axis, outputs)
    if parts is None:
        return None
    whole = regions.joined(node, list(parts.segments), parts.axis)
    regions.known[whole] = parts
    for value in list(node.users):
        rewriter.replace(value, [whole, *made[1:]][int(value.args[1])])  # type: ignore[arg-type]  # an int
        rewriter.graph.erase_node(value)
    rewriter.graph.erase_node(node)  # recurrences count as random, hence not as dead code
    return None


def _convolved(regions: Regions, node: fx.Node, found: Provenance) -> Provenance | None:
    given: list[Any] = [*node.args, *[None, [1], [0], [1], 1][len(node.args) - 2 :]]
    weight, bias, stride, padding, dilation, groups = given[1:]
    rewriter = regions.rewriter
    inside = [n for n in (weight, bias) if isinstance(n, fx.Node)]
    lists = all(isinstance(each, (list, tuple)) for each in (stride, padding, dilation))
    if not lists or list(stride) != [1] or node.kwargs or found.axis != 2:
        return None
    if node.meta["val"].dim() != 3 or any(rewriter.sides[n] != "neutral" for n in inside):
        return None
    (pad,), reach = padding, (int(weight.meta["val"].shape[-1]) - 1) * dilation[0]
    user = found.sizes()[0]
    done = user + pad - reach  # outputs that the user's positions give
    if done <= 0:
        return None

    def part(source: fx.Node, before: int, after: int) -> fx.Node:
        if before or after:
            source = rewriter.call(node, aten.constant_pad_nd.default, source, [before, after])
        return rewriter.call(node, node.target, source, weight, bias, [1], [0], dilation, groups)

    start = max(done - pad, 0)
    tail = [rewriter.call(node, aten.slice.Tensor, found.segments[0], 2, start, user)] if start < user else []
    rest = regions.joined(node, [*tail, *found.segments[1:]], 2)
    return Provenance(2, (part(found.segments[0], pad, 0), part(rest, max(pad - done, 0), pad)))


def _padded(regions: Regions, node: fx.Node, found: Provenance) -> Provenance | None:
    if node.target is aten.pad.default and len(node.args) > 2 and node.args[2] != "constant":
        return None
    rewriter, rank = regions.rewriter, node.meta["val"].dim()
    pads = [int(p) for p in node.args[1]]  # type: ignore[union-attr, arg-type]  # a list of ints
    pads += [0] * (2 * rank - len(pads))
    at = 2 * (rank - 1 - found.axis)
    before, after = pads[at : at + 2]
    low, high = max(-before, 0), sum(found.sizes()) - max(-after, 0)
    kept: list[fx.Node] = []
    position = 0
    for segment, length in zip(found.segments, found.sizes(), strict=True):
        a, b = max(low - position, 0), min(high - position, length)
        if a < b:
            cut = (a, b) != (0, length)
            kept.append(rewriter.call(node, aten.slice.Tensor, segment, found.axis, a, b) if cut else segment)
        position += length
    parts = []
    for number, segment in enumerate(kept):
        own = list(pads)
        own[at] = max(before, 0) if number == 0 else 0
        own[at + 1] = max(after, 0) if number == len(kept) - 1 else 0
        parts.append(rewriter.call(node, node.target, segment, own, *node.args[2:]) if any(own) else segment)
    if len(parts) == 1:
        rewriter.replace(node, parts[0])
    return merged(rewriter, node, found.axis, parts) if parts else None


_RULES: dict[Any, Callable[[Regions, fx.Node, Provenance], Provenance | None]] = {
    aten.cumsum.default: _summed,
    aten.gru.input: _stepped, aten.lstm.input: _stepped,
    aten.rnn_tanh.input: _stepped, aten.rnn_relu.input: _stepped,
    aten.conv1d.default: _convolved,
    aten.constant_pad_nd.default: _padded, aten.pad.default: _padded,
}  # fmt: skip
