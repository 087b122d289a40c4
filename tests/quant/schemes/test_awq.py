"""The factors of awq: how they are chosen, and what they are folded into."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.calibration.statistics import observe
from quant.graph.gemms import graph_of, weights_of
from quant.schemes import numerics
from quant.schemes.awq import factors_of, plan_awq
from quant.schemes.schemes import Awq
from tests.quant.graph_fixtures import model_of, run

F = TensorProto.FLOAT
value = helper.make_tensor_value_info
node = helper.make_node


def plan(model, x, name="w", tensor=None):
    """Plan awq for the weight ``name`` with statistics of the tensor that feeds it, and check that it is exact."""
    weights = tuple(w for w in weights_of(graph_of(model)) if w.kind == "matmul" and not w.refusal)
    fed = next(w.inputs[0] for w in weights if w.name == name)
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    if fed not in {i.name for i in model.graph.input}:
        probe.graph.output.append(value(fed, F, None))
    activations = run(probe, x=x)[-1] if fed != "x" else x
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    tokens = held[name].shape[0] if held[name].ndim == 3 else 0
    seen = observe(activations, tokens)
    # only the weights of this input are scaled; the others are int8 weights that may take factors
    quantized = tuple(w for w in weights)
    other = {w.name for w in weights if fed not in w.inputs}
    unseen = {
        n: observe(
            np.ones((*held[n].shape[:-2], 2, held[n].shape[-2]), np.float32),
            held[n].shape[0] if held[n].ndim == 3 else 0,
        )
        for n in other
    }
    found = plan_awq(graph_of(model), quantized, lambda n: unseen.get(n, seen), held.__getitem__, (0.5, 1.0), 0)
    folded = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in folded.graph.initializer:
        if tensor.name in found.scalings:
            scaled = found.scalings[tensor.name].apply(held[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))
    np.testing.assert_array_equal(run(folded, x=x)[0], run(model, x=x)[0])
    return found


def loud(r, *shape):
    """Values whose channels 2 and 5 are forty times as large as the rest: the case awq is made for."""
    values = r.uniform(0.5, 1.0, shape)
    values[..., [2, 5]] *= 40
    return values.astype(np.float32)


def quiet(r, *shape):
    """A weight whose rows 2 and 5 are small, so that scaling them up does not coarsen the step of a channel."""
    values = r.uniform(-1, 1, shape)
    values[..., [2, 5], :] *= 0.05
    return values.astype(np.float32)


def test_the_factors_are_those_with_the_least_error_by_a_plain_count() -> None:
    """Against a count in FP64, output by output: the exponent of the default grid that leaves the least error."""
    r = np.random.default_rng()
    nodes = [node("Mul", ["x", "gain"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    constants = {"gain": loud(r, 64), "w": r.standard_normal((64, 6)).astype(np.float32)}
    model = model_of(nodes, [value("x", F, ["n", 64])], [value("y", F, ["n", 6])], constants)
    rows = (r.standard_normal((300, 64)) * constants["gain"]).astype(np.float32)
    seen = observe(rows, 0)
    weights = tuple(w for w in weights_of(graph_of(model)) if w.kind == "matmul")
    found = plan_awq(graph_of(model), weights, lambda _: seen, constants.__getitem__, Awq().alphas, 0)

    def left(factors: np.ndarray) -> float:
        scaled, error = constants["w"].astype(np.float64) * factors[:, None], 0.0
        for column in scaled.T:
            step = float(numerics.representable(np.array([np.abs(column).max() / 127]))[0])
            missed = column - np.clip(np.rint(column / step), -127, 127) * step
            error += sum(m * e**2 / f**2 for m, e, f in zip(seen.moments, missed, factors, strict=True))
        return error

    tried = [np.ones(64), *(factors_of(seen.moments, alpha) for alpha in Awq().alphas)]
    chosen = found.scalings["w"].rows if "w" in found.scalings else np.ones(64)
    assert left(chosen) <= min(map(left, tried)) * (1 + 1e-5)  # ours rounds in float32, near ties included
    assert left(chosen) < 0.9 * left(np.ones(64)), "two channels hold 99 % of the energy"


def test_a_gated_unit_takes_the_factors_in_its_linear_branch() -> None:
    r = np.random.default_rng()
    nodes = [
        node("MatMul", ["x", "gate"], ["g"]),
        node("Sigmoid", ["g"], ["s"]),
        node("MatMul", ["x", "up"], ["u"]),
        node("Add", ["u", "bias"], ["ub"]),
        node("Mul", ["s", "ub"], ["h"]),
        node("MatMul", ["h", "w"], ["y"]),
    ]
    constants = {
        "gate": loud(r, 3, 5, 64),
        "up": loud(r, 3, 5, 64),
        "bias": loud(r, 3, 1, 64),
        "w": quiet(r, 3, 64, 4),
    }
    model = model_of(nodes, [value("x", F, [3, "n", 5])], [value("y", F, [3, "n", 4])], constants)
    found = plan(model, r.standard_normal((3, 40, 5)).astype(np.float32))
    assert set(found.scalings) == {"w", "up", "bias"}
    assert found.scalings["w"].rows.shape == (3, 64)  # every token its own
    assert (found.scalings["w"].rows != 1).any()
    assert found.reasons["gate"] == found.reasons["up"] == "'x' is a graph input"


def test_a_layer_norm_takes_the_factors_and_both_readers_share_them() -> None:
    r = np.random.default_rng()
    nodes = [
        node("LayerNormalization", ["x", "gain", "shift"], ["n"], axis=-1),
        node("MatMul", ["n", "w"], ["a"]),
        node("MatMul", ["n", "v"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    constants = {
        "gain": loud(r, 64),
        "shift": loud(r, 64),
        "w": quiet(r, 64, 3),
        "v": quiet(r, 64, 3),
    }
    model = model_of(nodes, [value("x", F, ["n", 64])], [value("y", F, ["n", 3])], constants)
    found = plan(model, r.standard_normal((60, 64)).astype(np.float32))
    assert set(found.scalings) == {"w", "v", "gain", "shift"}
    np.testing.assert_array_equal(found.scalings["w"].rows, found.scalings["v"].rows)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Sigmoid", ["x"], ["h"])], "Sigmoid before it takes no factor"),
        ([node("Add", ["x", "x"], ["h"])], "Add before it takes no factor"),
        ([node("Mul", ["x", "gain"], ["h"]), node("Relu", ["gain"], ["unused"])], "Mul|graph input|read elsewhere"),
        ([node("Mul", ["x", "gain"], ["h"]), node("Relu", ["h"], ["unused"])], "its input is also read elsewhere"),
    ],
)
def test_where_nothing_takes_the_factors_the_reason_is_given(nodes, reason) -> None:
    r = np.random.default_rng()
    constants = {"gain": loud(r, 6), "w": quiet(r, 6, 3)}
    graph = [*nodes, node("MatMul", ["h", "w"], ["y"])]
    model = model_of(graph, [value("x", F, ["n", 6])], [value("y", F, ["n", 3])], constants)
    found = plan(model, r.standard_normal((9, 6)).astype(np.float32))
    assert not found.scalings
    assert any(part in found.reasons["w"] for part in reason.split("|"))


def test_factors_are_powers_of_two_and_leave_silent_channels_alone() -> None:
    moments = np.array([1e-6, 4.0, 0.0, 1e6])
    for alpha in (0.0, 0.5, 1.0):
        factors = factors_of(moments, alpha)
        assert (np.log2(factors) % 1 == 0).all()
        assert factors[2] == 1
    assert (factors_of(moments, 0.0) == 1).all()
    assert factors_of(moments, 1.0)[3] > factors_of(moments, 1.0)[1] > factors_of(moments, 1.0)[0]
