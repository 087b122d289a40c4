"""Export a subgraph whose weights stay on disk: the whole ONNX graph, and where its large initializers come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from torch import Tensor

from export.metadata import Stamp
from export.onnx_file import EXTERNAL_DATA_BYTES, finish_model, to_onnx
from export.weights.lazy_weights import Constant, Recorder, Weights
from export.weights.placeholders import constant_of, lazy_tensor
from graphs.split.split import Subgraph


@dataclass(frozen=True)
class StreamedGraph:
    """A canonical graph without its large weights.

    ``model`` declares them as external data without a file; ``constants`` says where their values come from.
    """

    model: onnx.ModelProto
    constants: Mapping[str, Constant]


def export_streamed(
    subgraph: Subgraph,
    feeds: Mapping[str, Tensor],
    rows: Mapping[str, str],
    stamp: Stamp,
    recorder: Recorder,
    weights: Weights,
) -> StreamedGraph:
    """Export a subgraph built on the meta device to what ``export_subgraph`` would write; nothing is written.

    Args:
        subgraph: the graph.
        feeds: example meta tensors by input name, at least 2 rows each.
        rows: the name of each input's first axis, ``users`` or ``candidates``.
        stamp: the metadata.
        recorder: the one that was active while the model was split.
        weights: the checkpoint; small constants are read from it.

    Raises:
        UgsepError: the exporter refuses the graph, or a constant does not come from the checkpoint.
    """
    model = to_onnx(subgraph, feeds, rows)
    for name, value in model.graph.initializers.items():
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, Tensor) and raw.device.type == "meta":
            value.const_value = lazy_tensor(recorder.constant(raw, name), name, weights)
    finish_model(model, subgraph, stamp)
    constants: dict[str, Constant] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        constant = constant_of(tensor)
        if constant is None:
            continue
        if tensor.nbytes <= EXTERNAL_DATA_BYTES:
            value.const_value = ir.Tensor(np.ascontiguousarray(tensor.numpy()), name=name)
        else:
            constants[name] = constant
            value.const_value = ir.ExternalTensor(
                "", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    return StreamedGraph(ir.to_proto(model), constants)
