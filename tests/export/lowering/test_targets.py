"""The passes of the targets: what they promise, and that a broken promise is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export.lowering import TARGETS
from export.lowering.matmul_nbits import match_gemm
from export.lowering.passes import Lowering, Pass, matches, read_inferred, run_passes
from tests.export.lowering_graphs import ffn


@pytest.fixture
def lowering(tmp_path: Path) -> Lowering:
    path = ffn(tmp_path / "a.onnx", np.random.default_rng(0), True, "gelu")
    return Lowering(read_inferred(path), path)


def test_passes_have_names_of_their_own() -> None:
    passes = {step for steps in TARGETS.values() for step in steps}
    assert len({step.name for step in passes}) == len(passes)


def test_a_node_that_nearly_matches_is_logged_with_the_reason(
    lowering: Lowering, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "export.lowering.passes"):
        found = [str(weight.values.name) for _, weight in matches(lowering.graph, match_gemm)]
    assert found == ["dense.weight"]
    assert caplog.text.count("is not rewritten: the weight has 3 axes, not 2") == 2


def _rename_an_output(lowering: Lowering) -> None:
    lowering.graph.outputs[0].name = "other"


def _do_nothing(_: Lowering) -> None:
    pass


def _is_relu(node: ir.Node) -> object:
    return node if node.op_type == "Relu" else ""


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Pass("renaming", _rename_an_output), "'renaming' renamed an output"),
        (Pass("idle", _do_nothing, _is_relu), "'idle' left a match"),
    ],
)
def test_a_broken_post_condition_ends_the_run(lowering: Lowering, broken: Pass, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_passes(lowering, [broken])


def test_an_item_graph_that_gathers_no_state_says_so(lowering: Lowering) -> None:
    run_passes(lowering, TARGETS["one user"])
    assert lowering.refusal == "needs an item input and 'user_index', read by Gather and Shape only"
