"""The ranges of activations that quantization stamps in the graphs it writes."""

import pytest

from export.activations import activation_ranges, range_between
from quant.calibration.calibrate import calibrate
from quant.graph.gemms import load_graph
from quant.policy import Policy, Rule
from quant.requests.readers import read_requests
from quant.requests.spec import request_spec
from quant.schemes.schemes import Absmax, Awq
from quant.weights import quantize_side


@pytest.fixture
def calibration(graphs, make_columns, make_shards, tmp_path):
    make_shards(tmp_path / "data", make_columns(40), [])
    return calibrate(*graphs, read_requests([tmp_path / "data"], request_spec(*graphs)))


@pytest.mark.parametrize("scheme", [Absmax(), Awq()])
def test_the_ranges_are_those_of_the_calibrated_inputs(graphs, calibration, tmp_path, scheme) -> None:
    policy = Policy((Rule("ffn.up.*", "fp16"),))
    quantize_side(graphs[1], tmp_path, scheme=scheme, calibration=calibration, policy=policy)
    for view in ("w8a32", "w8a16"):
        path = tmp_path / f"item.{view}.onnx"
        ranges = activation_ranges(load_graph(path), path)
        assert ranges is not None
        assert set(ranges) == {"item.in.weight", "ffn.down.weight"}, "int8 products only"
        seen = calibration.item.of("item.in.weight")  # awq cannot scale a graph's input
        assert ranges["item.in.weight"] == range_between(seen.low.min(), seen.high.max())
        # What a Relu feeds is never negative; awq's factors, if any, are divided out of the inputs.
        assert ranges["ffn.down.weight"].zero == 0


def test_without_a_calibration_there_are_no_ranges(graphs, tmp_path) -> None:
    quantize_side(graphs[1], tmp_path, scheme=Absmax())
    path = tmp_path / "item.w8a32.onnx"
    assert activation_ranges(load_graph(path), path) is None
