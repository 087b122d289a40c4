"""Graphs whose nodes are not as their operators are defined are refused by the file and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import NodeProto, helper

from graphs.base.errors import UgsepError
from quant.graph.gemms import load_graph, weights_of


def _mutated(path: Path, op_type: str, change: Callable[[NodeProto], object]) -> Path:
    model = onnx.load(path, load_external_data=False)
    change(next(node for node in model.graph.node if node.op_type == op_type))
    path.write_bytes(model.SerializeToString())
    return path


def _set_axis(node: NodeProto, axis: float | str | list[int]) -> None:
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", axis))


@pytest.mark.parametrize(
    ("op_type", "change", "reason"),
    [
        ("Gather", lambda n: _set_axis(n, 0.0), "axis"),
        ("Gather", lambda n: _set_axis(n, "0"), "axis"),
        ("Transpose", lambda n: n.attribute.append(helper.make_attribute("axis", 1)), "axis"),
        ("MatMul", lambda n: n.input.pop(), "MatMul"),  # bias correction read the second input
        ("Sqrt", lambda n: n.input.extend(["two"]), "Sqrt"),
    ],
)
def test_a_node_that_its_operator_does_not_allow_is_one_line(
    graphs: tuple[Path, Path], op_type: str, change: Callable[[NodeProto], object], reason: str
) -> None:
    path = _mutated(graphs[1], op_type, change)
    with pytest.raises(
        UgsepError, match=rf"item.onnx' is not a valid graph \(.*{reason}.*\); export the model again"
    ):
        load_graph(path)


def test_operators_of_other_sets_are_not_checked(graphs: tuple[Path, Path]) -> None:
    model = onnx.load(graphs[1], load_external_data=False)
    model.opset_import.add(domain="own", version=1)
    node = next(node for node in model.graph.node if node.op_type == "Sqrt")
    node.domain = "own"
    node.attribute.append(helper.make_attribute("axis", 0.5))
    graphs[1].write_bytes(model.SerializeToString())
    assert len(weights_of(load_graph(graphs[1]))) == 5
