"""What a pass is, what all passes of a target work on, and how they run from one ONNX file to another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
)

from export.activations import ActivationRange
from export.io import check_file, read_model, write_model
from graphs.base.errors import UgsepError, first_line, printable_line

_log = logging.getLogger(__name__)
Match = TypeVar("Match")


@dataclass(frozen=True)
class LoweredGraph:
    """What a lowering did: for each rewritten weight the initializers that now hold it, and how it is read.

    ``parts``: weight name -> names of its lowered initializers, in the order of feature tokens (one if it was not
    cut). ``fused``: weights (by original name) now inside one fused int8 node. ``gathered``: int8 tables read by row.
    ``calibrated``: those of ``fused`` whose activations are rounded with a constant scale.
    """

    path: Path
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fused: frozenset[str] = frozenset()
    gathered: frozenset[str] = frozenset()
    calibrated: frozenset[str] = frozenset()


@dataclass
class Lowering:
    """The model being lowered, the settings of the passes, and what they did so far (as ``LoweredGraph``).

    ``ranges``: of the activations that int8 weights multiply, by weight.
    ``refusal``: why a pass cannot lower the graph for the target, or "".
    """

    model: ir.Model
    source: Path
    min_token_elements: int = 0
    min_expert_elements: int = 0
    plugin: frozenset[str] = frozenset()
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fused: set[str] = field(default_factory=set)
    gathered: set[str] = field(default_factory=set)
    calibrated: set[str] = field(default_factory=set)
    refusal: str = ""

    @property
    def graph(self) -> ir.Graph:
        """The graph that passes rewrite in place."""
        return self.model.graph

    def record_fused(self, initializers: set[str]) -> None:
        """Record the weights that these initializers hold as fused."""
        whole = {part: name for name, held in self.parts.items() for part in held}
        self.fused |= {whole.get(name, name) for name in initializers}

    def save(self, destination: Path, *, copy_weights: bool = True) -> None:
        """Write the model, with its weights in ``<destination>.data`` or in the files they are in, and check it.

        Raises:
            UgsepError: the file is not valid ONNX.
        """
        destination.parent.mkdir(parents=True, exist_ok=True)
        model = RemoveUnusedOpsetsPass()(RemoveUnusedNodesPass()(self.model).model).model
        data = f"{destination.name}.data" if copy_weights else None
        write_model(model, destination, data, 1024)
        check_file(destination, infer_shapes=False)


@dataclass(frozen=True)
class Pass:
    """A rewrite that keeps a graph's outputs equal.

    ``match`` is the pattern of a pass that rewrites node by node; after the pass no node matches any more.
    """

    name: str
    rewrite: Callable[[Lowering], None]
    match: Callable[[ir.Node], object] | None = None


def _remove_unused(lowering: Lowering) -> None:
    RemoveUnusedNodesPass()(lowering.model)


REMOVE_UNUSED = Pass("remove unused nodes", _remove_unused)


def matches(graph: ir.Graph, match: Callable[[ir.Node], Match | str]) -> Iterator[tuple[ir.Node, Match]]:
    """Yield the nodes of a graph that match; ``match`` returns a reason if a node nearly does, "" for any other."""
    for node in list(graph):
        found = match(node)
        if not isinstance(found, str):
            yield node, found
        elif found:
            _log.debug("'%s' is not rewritten: %s", node.outputs[0].name, found)


def run_passes(lowering: Lowering, passes: Sequence[Pass]) -> None:
    """Run passes in order; a pass that breaks its post-condition is a bug and ends the run."""
    outputs = [value.name for value in lowering.graph.outputs]
    for step in passes:
        step.rewrite(lowering)
        assert [value.name for value in lowering.graph.outputs] == outputs, f"'{step.name}' renamed an output"
        if step.match is not None:
            RemoveUnusedNodesPass()(lowering.model)
            assert not list(matches(lowering.graph, step.match)), f"'{step.name}' left a match"


def lower(lowering: Lowering, passes: Sequence[Pass], destination: Path) -> LoweredGraph:
    """Run passes and write the result.

    Raises:
        UgsepError: a pass or the checker refuses the graph.
    """
    run_passes(lowering, passes)
    lowering.save(destination)
    return LoweredGraph(
        destination,
        lowering.parts,
        frozenset(lowering.fused),
        frozenset(lowering.gathered),
        frozenset(lowering.calibrated),
    )


def read_inferred(source: Path) -> ir.Model:
    """Read an ONNX file with shapes inferred and constants lifted to initializers; weights stay on disk.

    Raises:
        UgsepError: the file is missing or not ONNX, or shapes and types contradict each other.
    """
    model = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(read_model(source)).model
    failures: list[BaseException] = []

    def kept(record: logging.LogRecord) -> bool:
        failures.extend(error for _, error, _ in [record.exc_info or (None, None, None)] if error is not None)
        return False

    # The pass logs the exception of a graph that contradicts itself with its traceback, and leaves shapes unknown.
    log = logging.getLogger(ShapeInferencePass.__module__)
    log.addFilter(kept)
    try:
        inferred = ShapeInferencePass()(model).model
    finally:
        log.removeFilter(kept)
    if failures:
        reason = printable_line(first_line(failures[0]))
        raise UgsepError(f"'{source}' is not valid ONNX ({reason:.300}); export the model again") from failures[0]
    return inferred
