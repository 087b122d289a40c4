"""Requests, and the columns that the graphs of a bundle need."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX
from quant.arrays import Array
from quant.graph.gemms import load_graph, name_of

REQUEST_ID = "request_id"


@dataclass(frozen=True)
class InputSpec:
    """A graph input: its name, NumPy dtype name (float32, int64, ...) and the shape of one row."""

    name: str
    dtype: str
    row_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class RequestSpec:
    """What a request must hold for a pair of graphs: user inputs, item inputs, and the tasks (label columns)."""

    user: tuple[InputSpec, ...]
    item: tuple[InputSpec, ...]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One request: ``user`` arrays have 1 row, ``items`` and ``labels`` (float32 [N]) one row per candidate."""

    request_id: int
    user: dict[str, Array]
    items: dict[str, Array]
    labels: dict[str, Array] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        """Number of candidates N."""
        return len(next(iter(self.items.values()))) if self.items else 0


def request_spec(user_onnx: Path, item_onnx: Path) -> RequestSpec:
    """Return the columns that the graphs need, without state tensors and ``user_index``.

    Raises:
        UgsepError: a graph cannot be read, or an input has an unknown row shape.
    """
    user, item = load_graph(user_onnx).graph, load_graph(item_onnx).graph
    state = {o.name for o in user.outputs} | {USER_INDEX}
    return RequestSpec(
        tuple(_input_spec(i, user_onnx) for i in user.inputs),
        tuple(_input_spec(i, item_onnx) for i in item.inputs if i.name not in state),
        tuple(map(name_of, item.outputs)),
    )


def _input_spec(value: ir.Value, path: Path) -> InputSpec:
    sizes = tuple(value.shape or ())[1:]
    row_shape = tuple(size for size in sizes if isinstance(size, int))
    if len(row_shape) < len(sizes):
        raise UgsepError(f"'{path}': input '{value.name}' has an unknown row shape; export it with fixed widths")
    assert value.dtype is not None
    return InputSpec(name_of(value), value.dtype.numpy().name, row_shape)
