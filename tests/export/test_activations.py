"""Ranges of activations: what they hold, and the stamp that quantization writes and lowering reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export.activations import ActivationRange, activation_ranges, activations_text, range_between
from export.io import stamp
from graphs.base.errors import UgsepError


@pytest.fixture
def model() -> onnx.ModelProto:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["m", 1]) for name in "xy")
    weight = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "up.weight")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "up.weight"], ["y"])], "g", [x], [y], [weight]
    )
    return onnx.helper.make_model(graph)


@pytest.mark.parametrize("_", range(50))
def test_a_range_holds_its_ends_and_zero_within_half_a_step(_: int) -> None:
    low, high = sorted(np.random.default_rng().normal(scale=10.0, size=2))
    found = range_between(low, high)
    assert found is not None
    assert 0 <= found.zero <= 255
    # The zero point is rounded to a whole step, which moves both ends by at most half of one.
    assert found.low <= min(low, 0.0) + found.scale * 0.5001
    assert found.high >= max(high, 0.0) - found.scale * 0.5001
    assert math.isclose(found.high - found.low, 255 * found.scale)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.0), (1e-40, 1e-40), (math.inf, -math.inf), (math.nan, 1.0), (-1e300, 1e300)]
)
def test_what_no_scale_can_hold_has_no_range(low: float, high: float) -> None:
    assert range_between(low, high) is None


def test_one_sided_values_use_all_steps() -> None:
    positive, negative = range_between(0.5, 4.0), range_between(-4.0, -0.5)
    assert positive == ActivationRange(4.0 / 255, 0)
    assert negative == ActivationRange(4.0 / 255, 255)


def test_a_stamp_reads_back_from_either_kind_of_model(model: onnx.ModelProto) -> None:
    ranges = {"up.weight": ActivationRange(0.1 + 0.2, 17)}
    assert activation_ranges(model, Path("a.onnx")) is None
    stamp(model, activations=activations_text(ranges))
    for read in (model, ir.from_proto(model)):
        assert activation_ranges(read, Path("a.onnx")) == ranges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "'a.onnx': ugsep.activations: not valid JSON"),
        ("[]", r"'a.onnx': ugsep.activations: ranges is \[\], not"),
        ('{"up.weight": {"scale": 1}}', "ranges.up.weight: 'zero' is missing"),
        ('{"up.weight": {"scale": 1, "zero": 3, "sero": 3}}', "sero"),
        ('{"up.weight": {"scale": "1", "zero": 3}}', 'up.weight.*scale is "1", not'),
        ('{"up.weight": {"scale": 0, "zero": 3}}', "ranges.up.weight.scale is 0.*out of range"),
        ('{"up.weight": {"scale": -1, "zero": 3}}', "ranges.up.weight.scale is -1.*out of range"),
        ('{"up.weight": {"scale": 1e-60, "zero": 3}}', "ranges.up.weight.scale is 1e-60, which is out of range"),
        ('{"up.weight": {"scale": NaN, "zero": 3}}', "NaN is not a JSON number"),
        ('{"up.weight": {"scale": 1, "zero": 256}}', "ranges.up.weight.zero is 256, not from 0 to 255"),
        ('{"up.weight": {"scale": 1, "zero": -1}}', "ranges.up.weight.zero is -1, not from 0 to 255"),
        ('{"upp.weight": {"scale": 1, "zero": 1}}', "no weight 'upp.weight', did you mean 'up.weight'"),
    ],
)
def test_a_malformed_stamp_names_file_and_field(model: onnx.ModelProto, text: str, message: str) -> None:
    stamp(model, activations=text)
    with pytest.raises(UgsepError, match=message) as error:
        activation_ranges(model, Path("a.onnx"))
    assert "\n" not in str(error.value)
    assert json.dumps(str(error.value)).isascii()
