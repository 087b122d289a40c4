"""The graphs of a split model and how to export them, shared by in-memory and streamed builds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engines.build.source_model import SourceModel, fresh_feeds
from engines.verify.exported.kernels import check_kernels
from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.names import GraphSide
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.split.split import Split, Subgraph

#: Rows to trace with: different and not 1, so that the tracer neither specializes a size nor equates the two.
TRACE_USERS, TRACE_CANDIDATES = 3, 7


Exported = TypeVar("Exported")


@dataclass(frozen=True)
class GraphExport:
    """A graph to export; ``rows`` maps each input to the name of its axis 0."""

    side: GraphSide
    subgraph: Subgraph
    rows: Mapping[str, str]
    stamp: Stamp


def graph_exports(name: str, split: Split, keep_float: Sequence[str]) -> list[GraphExport]:
    """Return the full, user and item graph of the model ``name``, with how to export each."""
    state = {s.name for s in split.state}
    graphs: dict[GraphSide, Subgraph] = {"full": split.full, "user": split.user, "item": split.item}
    return [
        GraphExport(
            side,
            graph,
            {n: "users" if side == "user" or n in state else "candidates" for n in graph.inputs},
            Stamp(name, side, "fp32", tuple(keep_float)),
        )
        for side, graph in graphs.items()
    ]


def export_graphs(
    name: str, source: SourceModel, split: Split, folder: Path, progress: ProgressCallback = silent
) -> dict[GraphSide, Path]:
    """Export the full, user and item graph in FP32; return the files by side.

    Raises:
        UgsepError: see ``export.onnx_file.export_subgraph``, or an op without a kernel for its type.
    """
    feeds = fresh_feeds(source, split, TRACE_USERS, TRACE_CANDIDATES, seed=1)

    def export(graph: GraphExport) -> Path:
        file = folder / f"{graph.side}.onnx"
        written = export_subgraph(graph.subgraph, feeds[graph.side], graph.rows, file, graph.stamp).path
        check_kernels(written, graph.subgraph)
        return written

    return dict(export_each(graph_exports(name, split, source.keep_float), export, progress))


def export_each(
    exports: Sequence[GraphExport], export: Callable[[GraphExport], Exported], progress: ProgressCallback
) -> Iterator[tuple[GraphSide, Exported]]:
    """Export graphs in order, each when it is asked for; yield the side and the result of every one."""
    for done, graph in enumerate(exports):
        progress(Progress("export", done, len(exports), graph.side))
        yield graph.side, export(graph)
    progress(Progress("export", len(exports), len(exports)))
