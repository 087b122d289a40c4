"""Write one subgraph of a split (or the full model) as a checked ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from export import names
from export.canonical import canonicalize
from export.decompositions.table import exporter_differs
from export.exporter_errors import refusal
from export.io import check_file, write_model
from export.metadata import IR_VERSION, OPSET, Stamp
from export.program import LENGTH, program_of
from graphs.base.errors import UgsepError
from graphs.base.gc_paused import gc_paused
from graphs.split.split import Subgraph

_log = logging.getLogger(__name__)

# A protobuf cannot exceed 2 GB, and readers map external data lazily; small models stay one file.
EXTERNAL_DATA_BYTES = 64 * 1024


@dataclass(frozen=True)
class OnnxFile:
    """An exported graph: its path, its external data (if any), and its inputs and outputs in order."""

    path: Path
    data: Path | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def export_subgraph(
    subgraph: Subgraph,
    feeds: Mapping[str, Tensor],
    rows: Mapping[str, str],
    path: Path,
    stamp: Stamp,
    lengths: Mapping[str, tuple[int, int]] | None = None,
) -> OnnxFile:
    """Export ``subgraph`` to ``path`` with dynamic first axes, in canonical form, checked by onnx.

    Args:
        subgraph: the graph to write.
        feeds: example tensors by input name, at least 2 rows each.
        rows: the name of each input's first axis, ``users`` or ``candidates``; inputs left out keep their size.
        path: the file to write; large weights go to ``<name>.data`` next to it.
        stamp: the metadata to write into the file.
        lengths: ``axes`` of ``graphs.split.lengths.AnyLength``, whose axes become dynamic too.

    Raises:
        UgsepError: the exporter or the checker refuses the graph.
    """
    model = to_onnx(subgraph, feeds, rows, lengths)
    finish_model(model, subgraph, stamp)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_suffix(path.suffix + ".data")
    write_model(model, path, data.name, EXTERNAL_DATA_BYTES)
    check_file(path)
    return OnnxFile(path, data if data.exists() else None, subgraph.inputs, subgraph.outputs)


def finish_model(model: ir.Model, subgraph: Subgraph, stamp: Stamp) -> None:
    """Bring what the exporter wrote to canonical form, in place."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "ugsep", ""
    canonicalize(model)
    _strip_traces(model)
    stamp.write(model)
    _name_ends(model, subgraph)


def to_onnx(
    subgraph: Subgraph,
    feeds: Mapping[str, Tensor],
    rows: Mapping[str, str],
    lengths: Mapping[str, tuple[int, int]] | None = None,
) -> ir.Model:
    """Run the ONNX exporter on a subgraph.

    Raises:
        UgsepError: it refuses the graph.
    """
    # The exporter logs and warns about torch internals; its errors, which matter, are raised.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), gc_paused():
        warnings.simplefilter("ignore")
        graph = subgraph.module.graph
        try:
            made = program_of(subgraph, feeds, rows, lengths)
            graph = made.graph
            program = _written(made, subgraph, feeds, rows, lengths or {})
        except Exception as error:  # the exporter raises many types; it then traces the module itself
            if lengths or any(exporter_differs(node) for node in subgraph.module.graph.nodes):
                raise refusal([(error, graph)]) from error  # its own forms would give other scores
            _log.info("tracing the graph again (%s)", error)
            try:
                program = _written(subgraph.module, subgraph, feeds, rows, {})
            except Exception as again:
                raise refusal([(error, graph), (again, subgraph.module.graph)]) from again
    return program.model


def _written(
    source: ExportedProgram | fx.GraphModule,
    subgraph: Subgraph,
    feeds: Mapping[str, Tensor],
    rows: Mapping[str, str],
    lengths: Mapping[str, tuple[int, int]],
) -> ONNXProgram:
    dims = {name: torch.export.Dim(name) for name in sorted({*rows.values(), LENGTH})}
    dynamic: list[dict[int, Any]] = [{0: dims[rows[n]]} if n in rows else {} for n in subgraph.inputs]
    for name, of_input in zip(subgraph.inputs, dynamic, strict=True):
        if name in lengths:
            axis, more = lengths[name]
            of_input[axis] = dims[LENGTH] + more if more else dims[LENGTH]
    program = torch.onnx.export(
        source,
        tuple(feeds[name] for name in subgraph.inputs),
        dynamo=True,
        dynamic_shapes=tuple(dynamic),
        opset_version=OPSET,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program


def _strip_traces(model: ir.Model) -> None:
    """Drop the exporter's notes: they hold source paths, which would make files differ by machine."""
    common.ClearMetadataAndDocStringPass()(model)  # clears nodes and graphs, but neither values nor the model
    graph = model.graph
    made = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*made, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()


def _name_ends(model: ir.Model, subgraph: Subgraph) -> None:
    graph = model.graph
    for index, value in enumerate(graph.outputs):
        if value in graph.inputs or value in graph.outputs[:index]:
            # An output that is an input, or another output, needs a separate value to carry its name. (onnx_ir's
            # OutputFixPass appends these nodes in another order.)
            copy = ir.node("Identity", [value])
            graph.append(copy)
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            graph.outputs[index] = copy.outputs[0]
    both = sorted(set(subgraph.inputs) & set(subgraph.outputs))
    if both:
        raise UgsepError(
            f"'{both[0]}' is both an input and an output of the model, which ONNX does not allow; rename one"
        )
    _free_names(graph, {*subgraph.inputs, *subgraph.outputs})
    for value, name in zip((*graph.inputs, *graph.outputs), (*subgraph.inputs, *subgraph.outputs), strict=True):
        value.name = name


def _free_names(graph: ir.Graph, taken: set[str]) -> None:
    """Rename inner values and parameters that have the name of an input or output."""
    for value in [v for node in graph for v in node.outputs]:
        if value.name in taken:
            value.name = names.derived(value.name, "inner")
    for name in sorted(taken & set(graph.initializers)):
        value = graph.initializers.pop(name)
        value.name = names.derived(name, "inner")
        graph.initializers[value.name] = value
