"""What the ONNX exporter cannot write: the op, the module and the source line, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import fx

from graphs.base.errors import UgsepError, first_line, printable_line
from graphs.trace.node_location import location_of

__all__ = ["refusal"]

_NODE = re.compile(r"Error when translating node %(\w+)")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 200  # characters of someone else's message


def refusal(tries: Sequence[tuple[Exception, fx.Graph]]) -> UgsepError:
    """Return why the exporter refused a graph, as one printable line.

    Args:
        tries: what it raised for a graph, whose nodes still know their module and source line; the first try that
            names a node of its graph counts, or else the last one.
    """
    for error, graph in tries:
        causes = list(_chain(error))
        if isinstance(causes[-1], UgsepError):
            return causes[-1]  # names the op and the remedy
        named = next((m[1] for m in (_NODE.search(str(e)) for e in causes) if m), None)
        reason = printable_line(_COLORS.sub("", first_line(causes[-1])))[:_LONGEST]
        node = next((n for n in graph.nodes if n.name == named), None)
        if node is not None and "No ONNX function found" in reason:
            return UgsepError(
                f"{location_of(node)} has no form in ONNX; write it with other operations, or compute it before the "
                "model and pass it as an input"
            )
        if node is not None:
            return UgsepError(f"the ONNX exporter refuses {location_of(node)}: {reason}; write it another way")
    return UgsepError(f"the ONNX exporter refuses the graph: {reason}; write that part with other operations")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes; what was raised while handling another error is no cause."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
