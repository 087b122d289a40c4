"""Split a model for histories of any length: one split at each of three lengths, their differences as formulas.

The splitter decides by position, so it needs their number. Sizes, ends of slices and other whole numbers of its
graphs are ``a T + b`` of the length T: two lengths give a and b, and the third must agree. Then the graphs are
compared with the model, at the shortest history too.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from graphs.base.errors import UgsepError, nearest
from graphs.base.names import USER_INDEX
from graphs.split.split import Split, Subgraph, split
from graphs.trace.node_location import location_of

aten = torch.ops.aten

__all__ = ["AnyLength", "split_for_any_length"]

#: How much shorter than the example's the other two histories are: sizes that follow the length in another way, such
#: as its square or its half, do not agree at all three.
SHORTER = (0, 2, 5)
PAD = "pad the history to one length, and hide the padding"
#: Bounds of |split - model|, absolute and relative, as ``prove_split``'s; for models in 16-bit floats, which the
#: graphs compute in 32, as ``trace``'s.
TOLERANCE, TOLERANCE_WIDENED = 1e-5, 0.1


@dataclass(frozen=True)
class AnyLength:
    """A split whose graphs take histories of every length; costs and bytes are those of the example's.

    ``axes``: of each input of the graphs that follows the length T, state included, the axis and by how many it has
    more than T positions.
    """

    split: Split
    axes: Mapping[str, tuple[int, int]]


def split_for_any_length(
    module: nn.Module,
    example: Mapping[str, Tensor],
    *,
    user: Iterable[str],
    item: Iterable[str],
    history: Mapping[str, int],
    shortest: int = 1,
) -> AnyLength:
    """Split ``module`` as ``graphs.split.split.split`` does, for any length of the ``history`` from ``shortest`` on.

    ``history`` names the inputs that follow it, with the axis; all have the same length in one request. A model may
    have a largest length, for example that of its embeddings of positions: the example's must not be above it.

    Raises:
        UgsepError: the errors of ``split``, an input that is none, lengths that differ or are too short, a graph that
            depends on the length in another way, or scores that are not the model's at some length.
    """
    longest = _length(example, history)
    user, item = tuple(user), tuple(item)
    lengths = [longest - less for less in SHORTER]
    splits = [
        split(
            module,
            {n: v.narrow(history[n], 0, length) if n in history else v for n, v in example.items()},
            user=user,
            item=item,
            folds=False,
        )
        for length in lengths
    ]
    axes = {**{n: (axis, 0) for n, axis in history.items()}, **_state_axes(splits, lengths)}
    full, of_user, of_item = (
        _any_length([getattr(s, side) for s in splits], lengths, axes) for side in ("full", "user", "item")
    )
    made = replace(splits[0], full=full, user=of_user, item=of_item)
    for length in sorted({shortest, shortest + 1, (shortest + longest) // 2, longest}):
        _check_scores(made, history, length)
    return AnyLength(made, axes)


def _length(example: Mapping[str, Tensor], history: Mapping[str, int]) -> int:
    for name in history:
        if name not in example:
            raise UgsepError(f"no input '{name}'{nearest(name, list(example))}")
    found = {name: int(example[name].shape[axis]) for name, axis in history.items()}
    if len(set(found.values())) != 1:
        raise UgsepError(f"the history's inputs have lengths {found} in the example; give all the same")
    longest = next(iter(found.values()))
    if longest < SHORTER[-1] + 2:
        raise UgsepError(
            f"the example's history has {longest} positions; give at least {SHORTER[-1] + 2}, to compare lengths"
        )
    return longest


def _state_axes(splits: Sequence[Split], lengths: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Return the axis of every state tensor that follows the length, and by how much it is longer."""
    names = [tuple((s.name, len(s.row_shape)) for s in made.state) for made in splits]
    if len(set(names)) != 1:
        raise UgsepError(f"the state is not the same for histories of {_listed(lengths)} positions; {PAD}")
    axes: dict[str, tuple[int, int]] = {}
    for tensors in zip(*(made.state for made in splits), strict=True):
        for axis, sizes in enumerate(zip(*(s.row_shape for s in tensors), strict=True), start=1):
            times, more = _formula(sizes, lengths, f"state '{tensors[0].name}'")
            if times == 1 and tensors[0].name not in axes:
                axes[tensors[0].name] = (axis, more)
            elif times:
                raise UgsepError(
                    f"state '{tensors[0].name}' grows by {times} sizes {sizes} per position of the history; {PAD}"
                )
    return axes


class _Sizes:
    """Whole numbers ``a T + b`` in a graph, each a node once; made after the inputs."""

    def __init__(self, graph: fx.Graph, length: fx.Node) -> None:
        self.graph, self.length = graph, length
        self.made: dict[tuple[int, int], fx.Node] = {(1, 0): length}

    def node(self, times: int, more: int) -> fx.Node:
        """Return the node of ``times * T + more``."""
        if (times, more) not in self.made:
            base = self.length if times == 1 else self.graph.call_function(operator.mul, (self.length, times))
            self.made[times, more] = self.graph.call_function(operator.add, (base, more)) if more else base
        return self.made[times, more]


def _any_length(graphs: Sequence[Subgraph], lengths: Sequence[int], axes: Mapping[str, tuple[int, int]]) -> Subgraph:
    """Return the graph whose whole numbers follow the length of its inputs."""
    first = graphs[0]
    nodes = [list(g.module.graph.nodes) for g in graphs]
    places = [{node: at for at, node in enumerate(given)} for given in nodes]
    result = fx.Graph()
    done: dict[fx.Node, fx.Node] = {}
    length: fx.Node | None = None
    for node in nodes[0]:
        if node.op == "placeholder":
            done[node] = result.node_copy(node)
    for name, given in zip(first.inputs, list(done.values()), strict=True):
        if name in axes and length is None:
            axis, more = axes[name]
            length = result.call_function(aten.sym_size.int, (given, axis))
            length = result.call_function(operator.sub, (length, more)) if more else length
    sizes = _Sizes(result, length) if length is not None else None

    def unified(node: fx.Node, values: Sequence[Any]) -> Any:
        """Return what the values of an argument at the lengths are at any length."""
        value = values[0]
        if isinstance(value, fx.Node):
            same = len({at.get(v, -1) for at, v in zip(places, values, strict=True)}) == 1
            return done[value] if same else _refuse(location_of(node), lengths)
        if all(type(v) is type(value) and v == value for v in values):
            return value
        if sizes is None or any(type(v) is not int for v in values):
            _refuse(location_of(node), lengths)
        return sizes.node(*_formula(values, lengths, location_of(node)))

    for alike in itertools.zip_longest(*nodes):
        node = next(n for n in alike if n is not None)
        if len({(n.op, n.target) if isinstance(n, fx.Node) else None for n in alike}) != 1:
            _refuse(location_of(node), lengths)
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            held, *others = (operator.attrgetter(str(node.target))(g.module) for g in graphs)
            if any(held.shape != other.shape or not torch.equal(held, other) for other in others):
                _refuse(f"constant '{node.target}'", lengths)
        flat = [pytree.tree_flatten((n.args, n.kwargs)) for n in alike]
        if len({len(leaves) for leaves, _ in flat}) != 1 or any(spec != flat[0][1] for _, spec in flat):
            _refuse(location_of(node), lengths)
        leaves = [unified(node, values) for values in zip(*(leaves for leaves, _ in flat), strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, flat[0][1])
        done[node] = result.create_node(node.op, node.target, args, kwargs, node.name)
        done[node].meta = {k: v for k, v in node.meta.items() if k != "val"}  # of one length
    result.lint()
    return Subgraph(fx.GraphModule(first.module, result), first.inputs, first.outputs)


def _formula(values: Sequence[int], lengths: Sequence[int], where: str) -> tuple[int, int]:
    """Return a and b of the values ``a T + b`` at the lengths T."""
    times, rest = divmod(values[0] - values[1], lengths[0] - lengths[1])
    more = values[0] - times * lengths[0]
    if rest or any(v != times * length + more for v, length in zip(values, lengths, strict=True)):
        raise UgsepError(
            f"{where} has sizes {_listed(values)} for histories of {_listed(lengths)} positions, which is no "
            f"multiple of the length plus a number; {PAD}"
        )
    return times, more


def _refuse(where: str, lengths: Sequence[int]) -> NoReturn:
    raise UgsepError(f"{where} differs between histories of {_listed(lengths)} positions by more than sizes; {PAD}")


def _check_scores(made: Split, history: Mapping[str, int], length: int) -> None:
    """Compare the graphs with the model at a length: what follows it by a minimum, say, is the same at all three."""
    traced = made.traced
    example = dict(zip(traced.inputs, traced.example, strict=True))
    rows = {n: v.narrow(history[n], 0, length) if n in history else v for n, v in example.items()}
    assert traced.original is not None
    expected = traced.original(rows)
    state = made.user({n: rows[n] for n in made.user.inputs})
    given = {**rows, **state, USER_INDEX: torch.arange(traced.example[0].shape[0])}
    bound = TOLERANCE_WIDENED if traced.widened else TOLERANCE
    for name, scores in made.item({n: given[n] for n in made.item.inputs}).items():
        a, b = scores.double(), expected[name].double()
        if a.shape != b.shape or not torch.allclose(a, b, bound, bound, equal_nan=True):
            raise UgsepError(
                f"'{name}' of histories of {length} positions is not the model's, which takes the length otherwise "
                f"there; pass the shortest length for which it does not, or {PAD}"
            )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
