"""Quantize the user and item graph of a checkpoint larger than memory, one chunk of a weight at a time.

The stages are those of an in-memory build up to its int8 files: split, export, quantize. Graphs pass through them one
by one, weights chunk by chunk.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.build.graph_exports import TRACE_CANDIDATES, TRACE_USERS, GraphExport, export_each, graph_exports
from engines.build.sources import check_architecture
from engines.bundle.provenance import tool_versions
from engines.recipes.recipe import Recipe
from export.streamed import StreamedGraph, export_streamed
from export.weights.lazy_weights import Recorder, Weights, open_weights
from graphs.base.features import Feature, of_side, random_rows
from graphs.base.names import SIDES, USER_INDEX
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.checkpoint.files import fingerprint, stored_weights
from graphs.models.pretrained import meta_model
from graphs.models.ranking_model import RankingModel
from graphs.split.split import Split, split_traced
from graphs.trace.trace import trace
from quant.policy import policy_from
from quant.schemes.schemes import Absmax, SchemeConfig
from quant.streaming.stream import Streamed, stream_graphs

#: Bytes to prefetch while a model is traced; they go to the page cache, which the kernel can evict at any time.
READ_AHEAD_BYTES = 10 << 30


@dataclass(frozen=True)
class LazySplit:
    """A folded model on the meta device, its split, and how each constant follows from the stored weights."""

    model: RankingModel
    split: Split
    recorder: Recorder


def stream(
    name: str,
    recipe: Recipe,
    checkpoint: Path,
    out: Path,
    *,
    scheme: SchemeConfig | None = None,
    threads: int = 2,
    progress: ProgressCallback = silent,
) -> Streamed:
    """Write the quantized graphs of a checkpoint to ``out`` without loading the whole model.

    The recipe sets the weight policy; its scheme is ignored, because calibration needs the FP32 graph. An interrupted
    run is resumed, a finished one is not repeated.

    Raises:
        UgsepError: a bad checkpoint, a model that cannot be traced or split, a constant that cannot be computed
            chunk by chunk, or the errors of ``quant.streaming.stream.stream_graphs``.
    """
    check_architecture(recipe, checkpoint)
    torch.set_num_threads(1)  # parallel over weights, not within each operation
    stored = stored_weights(checkpoint)
    model = meta_model(checkpoint)
    with open_weights(stored) as weights, weights.reading_ahead(_ahead_bytes()) as enough:
        graphs = _traced(lazy_graphs(name, model, weights, progress), enough)
        source = json.dumps([fingerprint(checkpoint), tool_versions()])
        return stream_graphs(
            graphs, weights, out, source=source, scheme=scheme or Absmax(),
            policy=policy_from(recipe.quantization.policy), threads=threads, progress=progress,
        )  # fmt: skip


def _ahead_bytes() -> int:
    """Return READ_AHEAD_BYTES, or half of the physical memory if that is less."""
    return min(READ_AHEAD_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _traced(graphs: Iterable[StreamedGraph], enough: threading.Event) -> Iterator[StreamedGraph]:
    """Yield the graphs; stop reading ahead when the first is ready."""
    for graph in graphs:
        enough.set()
        yield graph


def lazy_graphs(
    name: str, model: RankingModel, weights: Weights, progress: ProgressCallback = silent
) -> Iterator[StreamedGraph]:
    """Split and export a model on the meta device, when the first graph is asked for; yield user, then item graph."""
    yield from export_onnx(name, split_model(model, progress), weights, progress)


def split_model(model: RankingModel, progress: ProgressCallback = silent) -> LazySplit:
    """Fold and split a model on the meta device.

    Raises:
        UgsepError: the errors of ``graphs.split.split``.
    """
    progress(Progress("split", 0, 1))
    recorder = Recorder(model)
    with recorder:
        folded = model.for_inference()
    features = folded.config.features
    names = {side: [f.name for f in of_side(features, side)] for side in SIDES}
    traced = trace(folded, {"features": _rows(features, TRACE_CANDIDATES)})
    with recorder:
        split = split_traced(traced, names["user"], names["item"])
    progress(Progress("split", 1, 1, f"{split.reusable_share:.0%} of the FLOPs once per request"))
    return LazySplit(folded, split, recorder)


def export_onnx(
    name: str, lazy: LazySplit, weights: Weights, progress: ProgressCallback = silent
) -> Iterator[StreamedGraph]:
    """Export the user graph, then the item graph; their weights stay in the checkpoint.

    Raises:
        UgsepError: a constant cannot be computed chunk by chunk.
    """
    feeds = _feeds(lazy.model, lazy.split)

    def export(graph: GraphExport) -> StreamedGraph:
        given = {n: feeds[n] for n in graph.subgraph.inputs}
        return export_streamed(graph.subgraph, given, graph.rows, graph.stamp, lazy.recorder, weights)

    exports = [graph for graph in graph_exports(name, lazy.split, lazy.model.keep_float) if graph.side != "full"]
    yield from (graph for _, graph in export_each(exports, export, progress))


def _rows(features: tuple[Feature, ...], count: int) -> dict[str, torch.Tensor]:
    rows = random_rows(features, count, torch.Generator().manual_seed(0))
    return {name: value.to("meta") for name, value in rows.items()}


def _feeds(model: RankingModel, split: Split) -> dict[str, torch.Tensor]:
    """Return inputs for the user graph with TRACE_USERS rows, and for the item graph with TRACE_CANDIDATES."""
    rows = _rows(of_side(model.config.features, "user"), TRACE_USERS)
    items = _rows(of_side(model.config.features, "item"), TRACE_CANDIDATES)
    state = split.user({n: rows[n] for n in split.user.inputs})
    index = torch.zeros(TRACE_CANDIDATES, dtype=torch.int64, device="meta")
    return {**rows, **items, **state, USER_INDEX: index}
