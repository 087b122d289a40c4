"""Score requests with the FP32 graphs while weights are replaced, without building a graph per weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX
from quant.arrays import Array
from quant.calibration.calibrate import CHUNK_ROWS, Run, session
from quant.graph.gemms import load_graph, name_of, quantizable, read_tensor, tensor_of
from quant.requests.spec import Request
from quant.schemes.bias import biases_of


@dataclass(frozen=True)
class OpenGraph:
    """A graph whose MatMul weights and their biases are inputs.

    ``weights`` holds the FP32 values of both, memory-mapped; ``biases`` names the bias of a weight.
    """

    path: Path
    run: Run
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Array]
    biases: Mapping[str, str]

    def feed(self, values: Mapping[str, Array], replaced: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch with some weights replaced, by name."""
        own = {name: replaced.get(name, weight) for name, weight in self.weights.items()}
        feeds = {**{name: values[name] for name in self.inputs}, **own}
        return dict(zip(self.outputs, self.run(list(self.outputs), feeds), strict=True))


def open_graph(path: Path, threads: int) -> OpenGraph:
    """Load a graph with its quantizable weights and their biases turned into inputs.

    Raises:
        UgsepError: the graph does not load, or onnxruntime is missing.
    """
    model = load_graph(path)
    graph = model.graph
    inputs, outputs = tuple(map(name_of, graph.inputs)), tuple(map(name_of, graph.outputs))
    weights = {w.name for w in quantizable(model, path)}
    biases = {w: b for w, b in biases_of(model).items() if w in weights}
    values: dict[str, Array] = {}
    for name in [n for n in graph.initializers if n in weights or n in biases.values()]:
        value = graph.initializers.pop(name)
        values[name] = read_tensor(tensor_of(value))
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(values[name].shape)
        graph.inputs.append(value)
    return OpenGraph(path, session(model, path, threads), inputs, outputs, values, biases)


@dataclass(frozen=True)
class Scorer:
    """Both graphs and the requests to score; ``states`` are the user states of the FP32 weights."""

    user: OpenGraph
    item: OpenGraph
    requests: tuple[Request, ...]
    states: tuple[dict[str, Array], ...]
    labels: dict[str, Array]

    @property
    def sizes(self) -> list[int]:
        """Candidates of each request, in the order of the scores."""
        return [r.candidates for r in self.requests]

    def score(self, side: str = "", replaced: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return the scores of all rows per task, float32 [rows], with weights of one side replaced."""
        replaced = replaced or {}
        states = self.states
        if side == "user":
            states = tuple(self.user.feed(r.user, replaced) for r in self.requests)
        return self._items(states, replaced if side == "item" else {})

    def score_both(self, user: Mapping[str, Array], item: Mapping[str, Array]) -> dict[str, Array]:
        """Return the scores of all rows with weights of both sides replaced."""
        return self._items(tuple(self.user.feed(r.user, user) for r in self.requests), item)

    def _items(self, states: tuple[dict[str, Array], ...], replaced: Mapping[str, Array]) -> dict[str, Array]:
        found: dict[str, list[Array]] = {name: [] for name in self.item.outputs}
        for request, state in zip(self.requests, states, strict=True):
            for start in range(0, request.candidates, CHUNK_ROWS):
                rows = {n: a[start : start + CHUNK_ROWS] for n, a in request.items.items()}
                index = np.zeros(min(CHUNK_ROWS, request.candidates - start), np.int64)
                scores = self.item.feed({**rows, **state, USER_INDEX: index}, replaced)
                for name, values in scores.items():
                    found[name].append(values.reshape(len(index), -1)[:, 0])
        return {name: np.concatenate(parts) for name, parts in found.items()}


def open_scorer(user_onnx: Path, item_onnx: Path, requests: Iterable[Request], threads: int) -> Scorer:
    """Load both graphs and the requests.

    Raises:
        UgsepError: no requests, or graphs that do not load.
    """
    kept = tuple(requests)
    if not kept:
        raise UgsepError("no requests to score; give at least one")
    user, item = open_graph(user_onnx, threads), open_graph(item_onnx, threads)
    states = tuple(user.feed(r.user, {}) for r in kept)
    tasks = [t for t in item.outputs if all(t in r.labels for r in kept)]
    labels = {t: np.concatenate([r.labels[t] for r in kept]) for t in tasks}
    return Scorer(user, item, kept, states, labels)
