"""The splitter: cut any traced ranking model into a user graph (per request) and an item graph (per candidate)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from graphs.base.cost import SideCost, nbytes, side_cost
from graphs.base.errors import UgsepError, nearest
from graphs.base.names import USER_INDEX, Side
from graphs.rows.layout import Rows
from graphs.rows.reach import ancestors
from graphs.rows.sides import NodeSide, assign_sides
from graphs.split.cut import Cut, choose_state
from graphs.split.hoist import Hoisted, Unmasked, hoist
from graphs.split.independence import check_rows_independent
from graphs.split.subgraphs import build_item_subgraph, build_user_subgraph, state_row_shape
from graphs.trace.frozen import check_same_scores_later
from graphs.trace.trace import Example, Traced, trace


@dataclass(frozen=True)
class StateTensor:
    """One tensor that crosses the cut: ``[U, *row_shape]``, batch first."""

    name: str
    dtype: torch.dtype
    row_shape: tuple[int, ...]
    bytes_per_user: int


@dataclass(frozen=True)
class Subgraph:
    """One flat graph with named positional inputs (batch first) and named outputs."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph on named tensors."""
        with torch.no_grad():
            values = self.module(*[feeds[name] for name in self.inputs])
        return dict(zip(self.outputs, values, strict=True))


@dataclass(frozen=True)
class Split:
    """A model cut in two.

    ``user(inputs [U, ...]) -> state``; ``item(inputs [N, ...], state [U, ...], user_index [N]) -> outputs``;
    ``full`` is the whole model in the same flat form. ``traced`` is the graph that was cut, after hoisting; ``sides``
    and ``rows`` have the side and row axis of its nodes. ``hoisted`` lists the products that moved, ``cut`` what
    crosses and what is recomputed; ``unmasked`` the attentions that keep user positions per candidate.
    """

    full: Subgraph
    user: Subgraph
    item: Subgraph
    state: tuple[StateTensor, ...]
    user_cost: SideCost
    item_cost: SideCost
    full_cost: SideCost
    plain_state_bytes: int
    traced: Traced
    sides: dict[fx.Node, NodeSide]
    rows: dict[fx.Node, Rows]
    cut: Cut
    hoisted: tuple[Hoisted, ...] = ()
    unmasked: tuple[Unmasked, ...] = ()

    @property
    def user_inputs(self) -> tuple[str, ...]:
        """Return all user-side inputs of the model, used or not."""
        return self._inputs_of("user")

    @property
    def item_inputs(self) -> tuple[str, ...]:
        """Return all item-side inputs of the model, used or not."""
        return self._inputs_of("item")

    def _inputs_of(self, side: NodeSide) -> tuple[str, ...]:
        placeholders = [n for n in self.traced.module.graph.nodes if n.op == "placeholder"]
        pairs = zip(placeholders, self.traced.inputs, strict=True)
        return tuple(name for node, name in pairs if self.sides[node] == side)

    @property
    def state_bytes(self) -> int:
        """Bytes of user state per user."""
        return sum(s.bytes_per_user for s in self.state)

    @property
    def reusable_share(self) -> float:
        """Share of the whole model's FLOPs saved per candidate."""
        return 1 - self.item_cost.flops / self.full_cost.flops if self.full_cost.flops else 0.0

    def speedup_limit(self, candidates: int) -> float:
        """Return the FLOP limit of the speed-up for one request of ``candidates`` items."""
        request = self.user_cost.flops + candidates * self.item_cost.flops
        return candidates * self.full_cost.flops / request if request else 1.0  # a model that only moves data


def split(
    module: nn.Module,
    example: Example,
    *,
    user: Iterable[str],
    item: Iterable[str],
    hoisting: bool = True,
    folds: bool = True,
) -> Split:
    """Split ``module``, traced on ``example``, by naming its user-side and item-side inputs.

    ``hoisting=False`` disables ``graphs.split.hoist``, for comparison; ``folds`` is that of ``Rewriter``.

    Raises:
        UgsepError: an input on both sides or on none, an unknown input, a side that no output depends on, rows that
            depend on each other, a model that torch.export cannot trace, or scores that change with the time or with
            random numbers.
    """
    traced = trace(module, example)
    # What is given as None or a number is part of the model, on no side.
    named = ([n for n in names if n not in traced.constants] for names in (user, item))
    by_side = _sides_of_inputs(traced.inputs, *named)
    made = split_traced(traced, by_side["user"], by_side["item"], hoisting, folds)
    if traced.original is not None:
        check_same_scores_later(traced.original, dict(zip(traced.inputs, traced.example, strict=True)))
    return made


def split_traced(
    traced: Traced, user: Sequence[str], item: Sequence[str], hoisting: bool = True, folds: bool = True
) -> Split:
    """Split an already traced model; raises as ``split``."""
    if USER_INDEX in traced.inputs:
        raise UgsepError(f"an input is named '{USER_INDEX}', which the item graph adds itself; rename it")
    whole = traced
    placeholders = _names_of_placeholders(traced)
    given: dict[str, Side] = {p: "user" if name in user else "item" for p, name in placeholders.items()}
    sides = assign_sides(traced.module.graph, given)
    rows = check_rows_independent(traced)
    hoisted: tuple[Hoisted, ...] = ()
    unmasked: tuple[Unmasked, ...] = ()
    if hoisting:
        traced, hoisted, unmasked = hoist(traced, sides, folds)
        sides = assign_sides(traced.module.graph, given)
        rows = check_rows_independent(traced)
    _check_both_sides(traced, sides, user, item)
    graph = traced.module.graph
    cut = choose_state(graph, sides)
    user_module, state_names = build_user_subgraph(traced, sides, cut, rows)
    item_module = build_item_subgraph(traced, sides, cut, rows, state_names)
    used_user = tuple(n for p, n in placeholders.items() if n in user and p in _placeholders(user_module))
    used_item = tuple(n for p, n in placeholders.items() if n in item and p in _placeholders(item_module))
    state = tuple(_state_tensor(name, node, rows[node]) for name, node in zip(state_names, cut.state, strict=True))
    recomputed = set(cut.recomputed)
    once = ancestors(cut.state)
    user_nodes = [n for n in graph.nodes if n in once and sides[n] == "user" and n.op == "call_function"]
    item_nodes = [n for n in graph.nodes if (sides[n] == "item" or n in recomputed) and n.op == "call_function"]
    return Split(
        full=_without_unread_inputs(whole),
        user=Subgraph(user_module, used_user, state_names),
        item=Subgraph(item_module, (*used_item, *state_names, USER_INDEX), traced.outputs),
        state=state,
        user_cost=side_cost(user_nodes),
        item_cost=side_cost(item_nodes),
        full_cost=side_cost(n for n in whole.module.graph.nodes if n.op == "call_function"),
        plain_state_bytes=cut.plain_bytes,
        traced=traced,
        sides=sides,
        rows=rows,
        cut=cut,
        hoisted=hoisted,
        unmasked=unmasked,
    )


def _without_unread_inputs(whole: Traced) -> Subgraph:
    """Return the whole model; like both subgraphs, it takes no input that nothing reads: requests have none such."""
    given = [n for n in whole.module.graph.nodes if n.op == "placeholder"]
    if all(node.users for node in given):
        return Subgraph(whole.module, whole.inputs, whole.outputs)
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(whole.module.graph, copied))
    for node in given:
        if not node.users:
            graph.erase_node(copied[node])
    read = tuple(name for node, name in zip(given, whole.inputs, strict=True) if node.users)
    return Subgraph(fx.GraphModule(whole.module, graph), read, whole.outputs)


def _check_both_sides(
    traced: Traced,
    sides: dict[fx.Node, NodeSide],
    user: Sequence[str],
    item: Sequence[str],
) -> None:
    reached = ancestors(n for n in traced.module.graph.nodes if n.op == "output")
    read = {sides[n] for n in reached if n.op != "output"}
    if "item" not in read:
        raise UgsepError(
            f"nothing depends on the item inputs {list(item)}; name the inputs that differ between candidates"
        )
    if "user" not in read:
        raise UgsepError(
            f"nothing depends on the user inputs {list(user)}, so there is no user graph; name the inputs that all "
            "candidates of a request share, or serve the whole model"
        )


def _placeholders(module: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]


def _names_of_placeholders(traced: Traced) -> dict[str, str]:
    return dict(zip(_placeholders(traced.module), traced.inputs, strict=True))


def _state_tensor(name: str, node: fx.Node, rows: Rows) -> StateTensor:
    value = node.meta["val"]
    return StateTensor(name, value.dtype, state_row_shape(value, rows), nbytes(node))


def _sides_of_inputs(names: Sequence[str], user: Sequence[str], item: Sequence[str]) -> dict[str, list[str]]:
    for name in (*user, *item):
        if name not in names:
            raise UgsepError(f"no input '{name}'{nearest(name, names)}")
    both = sorted(set(user) & set(item))
    if both:
        raise UgsepError(f"input '{both[0]}' is on both sides; name it once")
    missing = [n for n in names if n not in user and n not in item]
    if missing:
        raise UgsepError(f"input '{missing[0]}' is on neither side; add it to the user or the item inputs")
    for side, chosen in (("user", user), ("item", item)):
        if not chosen:
            raise UgsepError(f"no {side}-side input is named; name at least one")
    return {"user": [n for n in names if n in user], "item": [n for n in names if n in item]}
