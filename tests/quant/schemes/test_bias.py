"""The mean error of a quantized product is added to its bias, unless other nodes read that bias."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quant.calibration.calibrate import calibrate
from quant.calibration.statistics import observe
from quant.graph.gemms import graph_of
from quant.requests.readers import read_requests
from quant.requests.spec import request_spec
from quant.schemes import numerics
from quant.schemes.awq import Scaling
from quant.schemes.bias import biases_of, corrected, mean_shift
from quant.schemes.schemes import Absmax, Awq, Gptq, Mse
from quant.search.scoring import open_scorer
from quant.search.sensitivity import open_candidates
from quant.weights import quantize_side, quantize_values
from tests.quant.graph_fixtures import constants


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 3]), st.sampled_from([Mse(threads=1), Gptq()]))
@settings(deadline=None, max_examples=60)
def test_the_corrected_output_is_never_worse_than_absmax_s(seed, tokens, scheme) -> None:
    r = np.random.default_rng(seed)
    inputs, outputs, rows = int(r.integers(1, 40)), int(r.integers(1, 9)), int(r.integers(2, 200))
    lead = (tokens,) if tokens else ()
    # means far from zero, a constant input and a silent one; independent inputs, as mse takes them to be
    mean = r.normal(0, 3, (*lead, 1, inputs))
    x = (mean + r.standard_normal((*lead, rows, inputs)) * r.uniform(0, 1, inputs)).astype(np.float32)
    x[..., 0] = 7.0
    x[..., -1] = 0.0
    weight = r.standard_t(3, (*lead, inputs, outputs)).astype(np.float32)
    seen = observe(x, tokens, gram=True)
    _, plain = quantize_values(Absmax(), weight, seen, 0, Scaling())
    _, restored = quantize_values(scheme, weight, seen, 0, Scaling(), biased=True)
    shift = mean_shift(weight, restored, seen)
    exact = x.astype(np.float64) @ weight
    missed = x.astype(np.float64) @ restored + np.expand_dims(shift, -2) - exact
    # the mean is gone, up to float64 sums of float32 products
    assert np.abs(missed.mean(-2)).max() <= 1e-6 * (1 + np.abs(exact).max())
    moments = seen.moments if isinstance(scheme, Mse) else None
    if moments is None:
        before, after = (x.astype(np.float64) @ plain - exact) ** 2, missed**2
        assert (after.sum(-2) <= before.sum(-2) * (1 + 1e-3) + 1e-9).all()  # chosen on float32 sums
    else:
        before = numerics.output_error(weight, plain, moments)
        after = numerics.output_error(weight, restored, seen.centered().moments)
        assert (after <= before * (1 + 1e-4) + 1e-12).all()


def test_centered_statistics_are_those_of_centered_data() -> None:
    x = np.random.default_rng().normal(2.0, 1.0, (3, 50, 7)).astype(np.float32)
    got = observe(x, 3, gram=True).centered()
    want = observe(x - x.mean(-2, keepdims=True), 3, gram=True)
    # float32 means differ from the float64 ones by 1e-7
    np.testing.assert_allclose(got.squares, want.squares, rtol=1e-5)
    np.testing.assert_allclose(got.gram, want.gram, atol=1e-4)
    np.testing.assert_allclose(got.low, want.low, atol=1e-5)


def _graph(nodes, shapes, outputs=("y",)):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "user",
        [value("x", TensorProto.FLOAT, None)],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()],
    )
    return graph_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


@pytest.mark.parametrize(
    ("weight", "bias", "found"),
    [
        ((5, 4), (4,), True),
        ((5, 4), (1, 4), True),
        ((5, 4), (1,), False),  # one number for all outputs
        ((5, 1), (1,), True),
        ((5, 4), (), False),
        ((3, 5, 4), (3, 1, 4), True),
        ((3, 5, 4), (4,), False),  # shared by the tokens
    ],
)
def test_a_bias_fits_its_weight(weight, bias, found) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["b", "m"], ["y"])]
    assert biases_of(_graph(nodes, {"w": weight, "b": bias})) == ({"w": "b"} if found else {})


def test_a_bias_with_other_readers_is_left_alone() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["m"])
    add = helper.make_node("Add", ["m", "b"], ["y"])
    shapes = {"w": (4, 4), "b": (4,), "v": (4, 4)}
    assert biases_of(_graph([product, add], shapes)) == {"w": "b"}
    assert not biases_of(_graph([product, add], shapes, ("y", "m")))
    assert not biases_of(_graph([product, add, helper.make_node("Relu", ["m"], ["z"])], shapes, ("y", "z")))
    assert not biases_of(_graph([product, add, helper.make_node("Relu", ["b"], ["z"])], shapes, ("y", "z")))
    twice = helper.make_node("MatMul", ["y", "w"], ["z"])
    assert not biases_of(_graph([product, add, twice], shapes, ("z",)))
    assert not biases_of(_graph([product, helper.make_node("Add", ["m", "x"], ["y"])], shapes))


@pytest.mark.parametrize("scheme", [Mse(), Gptq(), Awq()])
def test_the_graph_holds_the_bias_that_sensitivity_scores(
    graphs, make_columns, make_shards, tmp_path, scheme
) -> None:
    make_shards(tmp_path / "data", make_columns(40), [])
    requests = list(read_requests([tmp_path / "data"], request_spec(*graphs)))
    found = calibrate(*graphs, requests, gram=True)
    opened = open_candidates(*graphs, requests, scheme, found, 0, 1)
    replaced = {"user": {}, "item": {}}
    for side, weight in opened.weights:
        replaced[side] |= opened.restored(side, weight)
    assert set(replaced["user"]) == {"user.in.weight", "user.in.bias"}
    assert "ffn.up.bias" in replaced["item"]
    for path in graphs:
        quantize_side(path, tmp_path / "q", scheme=scheme, calibration=found)
    held = constants(tmp_path / "q" / "user.w8a32.onnx")
    if not isinstance(scheme, Awq):  # awq divides biases by its factors too
        np.testing.assert_array_equal(held["user.in.bias"], replaced["user"]["user.in.bias"])
    # without the correction the mean of the scores moves; with it the same weights come closer
    scorer = open_scorer(*graphs, requests, 1)
    exact = scorer.score()["click"]
    whole = scorer.score_both(**replaced)["click"]
    bare = {s: {n: v for n, v in d.items() if not n.endswith("bias")} for s, d in replaced.items()}
    assert numerics.sqnr_db(exact, whole) > numerics.sqnr_db(exact, scorer.score_both(**bare)["click"]) - 1.0


def test_absmax_needs_no_calibration_and_corrects_nothing(graphs, tmp_path) -> None:
    quantize_side(graphs[0], tmp_path, scheme=Absmax())
    before, after = constants(graphs[0]), constants(tmp_path / "user.w8a32.onnx")
    np.testing.assert_array_equal(before["user.in.bias"], after["user.in.bias"])


def test_the_shift_is_added_in_the_shape_of_the_bias() -> None:
    r = np.random.default_rng()
    bias, shift = r.standard_normal((3, 1, 4)).astype(np.float32), r.standard_normal((3, 4))
    got = corrected(bias, shift)
    assert (got.shape, got.dtype) == ((3, 1, 4), np.float32)
    np.testing.assert_allclose(got[:, 0], bias[:, 0] + shift, rtol=1e-6)
