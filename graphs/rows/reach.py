"""All nodes that can be reached from some, in one direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes and all nodes they are computed from."""
    return reached(nodes, lambda node: node.all_input_nodes)


def descendants(node: fx.Node) -> set[fx.Node]:
    """Return all nodes that are computed from a node."""
    return reached(node.users, lambda reader: reader.users)


def reached(nodes: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """Return the nodes and all that can be reached from them in steps of ``following``."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(following(node))
    return found
