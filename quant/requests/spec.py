"""What a request holds, and what the graphs of a bundle ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx

from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX
from quant.arrays import Array
from quant.graph.gemms import load_graph

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
    state = {o.name for o in user.output} | {USER_INDEX}
    return RequestSpec(
        tuple(_input_spec(i, user_onnx) for i in user.input),
        tuple(_input_spec(i, item_onnx) for i in item.input if i.name not in state),
        tuple(o.name for o in item.output),
    )


def _input_spec(value: onnx.ValueInfoProto, path: Path) -> InputSpec:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim[1:]
    if any(not d.HasField("dim_value") for d in dims):
        raise UgsepError(f"'{path}': input '{value.name}' has an unknown row shape; export it with fixed widths")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return InputSpec(value.name, dtype.name, tuple(d.dim_value for d in dims))
