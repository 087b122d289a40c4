"""What a proof compares engines with: the PyTorch model, or, for a finished bundle, its own FP32 graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.backends.contract import Runner
from engines.verify.exported.check import Feeds, check_export
from engines.verify.scores import Scores, full_engine_scores
from graphs.base.names import GraphSide
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.split.split import Split, Subgraph
from quant.requests.spec import Request


class Reference(Protocol):
    """FP32 scores of the requests of a proof, and a check of the FP32 graphs that the proof relies on."""

    def check_graphs(self, engines: Mapping[GraphSide, Runner], progress: ProgressCallback = silent) -> None:
        """Raise GateFailed if the FP32 engine of a graph does not compute what the model computes."""
        ...

    def scores(self, full: Runner, progress: ProgressCallback = silent) -> Scores:
        """Return the FP32 logits of every request; ``full`` is the FP32 engine of the whole model."""
        ...


@dataclass(frozen=True)
class PyTorchReference:
    """The PyTorch model a bundle was built from.

    ``known`` are its scores of the requests; ``feeds`` returns fresh random inputs of the three graphs for a number
    of candidates and of users.
    """

    split: Split
    known: Scores
    feeds: Callable[[int, int], Feeds]

    def check_graphs(self, engines: Mapping[GraphSide, Runner], progress: ProgressCallback = silent) -> None:
        """Run every FP32 engine on fresh and on extreme rows against the PyTorch graph it was exported from."""
        graphs: dict[GraphSide, Subgraph] = {
            "full": self.split.full,
            "user": self.split.user,
            "item": self.split.item,
        }
        for done, (side, runner) in enumerate(engines.items(), start=1):
            check_export(side, graphs[side], runner, self.feeds)
            progress(
                Progress("check", done, len(engines), f"{side}.onnx against PyTorch at 1, 2, 257 and extreme rows")
            )

    def scores(self, full: Runner, progress: ProgressCallback = silent) -> Scores:
        """Return the scores of the PyTorch model."""
        return self.known


@dataclass(frozen=True)
class OnnxReference:
    """The FP32 graph of the whole model in a bundle, for a proof on a machine without the PyTorch model."""

    requests: Sequence[Request]

    def check_graphs(self, engines: Mapping[GraphSide, Runner], progress: ProgressCallback = silent) -> None:
        """Check nothing: the build compared these graphs with PyTorch, and their hashes say they are the same."""

    def scores(self, full: Runner, progress: ProgressCallback = silent) -> Scores:
        """Return the scores of the FP32 engine of the whole model."""
        return full_engine_scores(full, self.requests, progress)
