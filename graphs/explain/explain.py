"""What a split saves and why: cost per module and side, and where user information first meets the items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from graphs.base.cost import flops, nbytes, numel
from graphs.split.hoist import Hoisted, Unmasked
from graphs.split.split import Split, StateTensor
from graphs.trace.node_location import location_of, module_path, source_line

Kind = Literal["user", "item", "constant"]
CANDIDATES = 256


@dataclass(frozen=True)
class ModuleCost:
    """Cost of a module, including its submodules if all are on one side.

    FLOPs are per row: ``user`` once per request, ``item`` per candidate, ``constant`` from parameters alone. Bytes
    are of the parameters it reads, embedding tables included.
    """

    path: str
    sides: tuple[Kind, ...]
    user_flops: int
    item_flops: int
    constant_flops: int
    weight_bytes: int


@dataclass(frozen=True)
class Meeting:
    """A node where user information first meets item information.

    ``user_share`` is the share of user values, ``downstream_flops`` the cost per candidate of all that is computed
    from the node, ``movable_flops`` = share * downstream the cost that UG-Sep's mask would move to once per request,
    and ``speedup_limit`` the FLOP limit with that mask.
    """

    where: str
    module: str
    line: str
    user_share: float
    downstream_flops: int
    movable_flops: int
    speedup_limit: float


@dataclass(frozen=True)
class Explanation:
    """The cost of a split by module; limits are FLOP limits for ``candidates`` per request."""

    candidates: int
    full_flops: int
    user_flops: int
    item_flops: int
    user_weight_bytes: int
    item_weight_bytes: int
    reusable_share: float
    speedup_limit: float
    state: tuple[StateTensor, ...]
    state_bytes: int
    plain_state_bytes: int
    recomputed: tuple[str, ...]
    modules: tuple[ModuleCost, ...]
    meetings: tuple[Meeting, ...]
    hoisted: tuple[Hoisted, ...]
    unmasked: tuple[Unmasked, ...]


def explain(split: Split, candidates: int = CANDIDATES) -> Explanation:
    """Explain a split for requests of ``candidates`` items."""
    return Explanation(
        candidates=candidates,
        full_flops=split.full_cost.flops,
        user_flops=split.user_cost.flops,
        item_flops=split.item_cost.flops,
        user_weight_bytes=split.user_cost.weight_bytes + split.user_cost.table_bytes,
        item_weight_bytes=split.item_cost.weight_bytes + split.item_cost.table_bytes,
        reusable_share=split.reusable_share,
        speedup_limit=split.speedup_limit(candidates),
        state=split.state,
        state_bytes=split.state_bytes,
        plain_state_bytes=split.plain_state_bytes,
        recomputed=tuple(location_of(n) for n in split.cut.recomputed),
        modules=_module_costs(split),
        meetings=_meetings(split, candidates),
        hoisted=split.hoisted,
        unmasked=split.unmasked,
    )


def kind_of(split: Split, node: fx.Node) -> Kind:
    """Return when a node runs: per request, per candidate, or on parameters alone."""
    if split.sides[node] == "neutral":
        return "constant"
    return "item" if split.sides[node] == "item" or node in split.cut.recomputed else "user"


def computed_nodes(split: Split) -> list[fx.Node]:
    """Return the nodes that compute tensors, in graph order."""
    calls = (n for n in split.traced.module.graph.nodes if n.op == "call_function")
    return [n for n in calls if isinstance(n.meta.get("val"), torch.Tensor)]


def _module_costs(split: Split) -> tuple[ModuleCost, ...]:
    by_path: dict[str, list[fx.Node]] = defaultdict(list)
    for node in computed_nodes(split):
        by_path[module_path(node)].append(node)
    sides = {path: {kind_of(split, n) for n in nodes} for path, nodes in by_path.items()}
    shown: dict[str, list[fx.Node]] = defaultdict(list)
    for path, nodes in by_path.items():
        shown[_collapsed(path, sides)].extend(nodes)
    return tuple(_cost(split, path, nodes) for path, nodes in shown.items())


def _collapsed(path: str, sides: dict[str, set[Kind]]) -> str:
    """Return the outermost module around ``path`` that runs on one side only."""
    steps = path.split(".")
    for depth in range(1, len(steps)):
        outer = ".".join(steps[:depth])
        inside: set[Kind] = set()
        for other, kinds in sides.items():
            if other == outer or other.startswith(outer + "."):
                inside |= kinds
        if len(inside) == 1:
            return outer
    return path


def _cost(split: Split, path: str, nodes: list[fx.Node]) -> ModuleCost:
    total: dict[Kind, int] = {"user": 0, "item": 0, "constant": 0}
    weights: dict[str, int] = {}
    seen: set[Kind] = set()
    for node in nodes:
        kind = kind_of(split, node)
        seen.add(kind)
        total[kind] += flops(node)
        weights.update({str(n.target): nbytes(n) for n in _parameters(node)})
    kinds: tuple[Kind, ...] = ("user", "item", "constant")
    return ModuleCost(
        path or "(model)",
        tuple(k for k in kinds if k in seen),
        total["user"],
        total["item"],
        total["constant"],
        sum(weights.values()),
    )


def _parameters(node: fx.Node) -> Iterable[fx.Node]:
    return (n for n in node.all_input_nodes if n.op == "get_attr" and isinstance(n.meta.get("val"), torch.Tensor))


def _meetings(split: Split, candidates: int) -> tuple[Meeting, ...]:
    """Return the nodes with user and item operands none of which depends on an earlier such node."""
    met: set[fx.Node] = set()
    first: list[fx.Node] = []
    for node in split.traced.module.graph.nodes:
        if node.op != "call_function" or split.sides[node] != "item":
            continue
        inputs = [n for n in node.all_input_nodes if split.sides[n] != "neutral"]
        if any(n in met for n in inputs):
            met.add(node)
        elif any(split.sides[n] == "user" for n in inputs):
            met.add(node)
            first.append(node)
    found = [_meeting(split, node, candidates) for node in first]
    return tuple(sorted(found, key=lambda m: -m.movable_flops))


def _meeting(split: Split, node: fx.Node, candidates: int) -> Meeting:
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor) and n.op != "get_attr"]
    sizes = {n: numel(n.meta["val"]) for n in tensors}
    share = sum(s for n, s in sizes.items() if split.sides[n] == "user") / max(sum(sizes.values()), 1)
    reached = {node}
    downstream = 0
    for later in split.traced.module.graph.nodes:
        if later in reached or any(n in reached for n in later.all_input_nodes):
            reached.add(later)
            downstream += flops(later)
    movable = int(share * downstream)
    request = split.user_cost.flops + movable + candidates * max(split.item_cost.flops - movable, 1)
    return Meeting(
        location_of(node),
        module_path(node) or "(model)",
        source_line(node),
        share,
        downstream,
        movable,
        candidates * split.full_cost.flops / request,
    )
