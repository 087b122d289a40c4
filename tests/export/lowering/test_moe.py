"""Routed experts against the dense-gated graph: same scores, every weight present once, idle ones unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from export.lowering import LoweredGraph, lower_for_cpu
from tests.export.lowering_graphs import Graph

T, D, E, H = 3, 20, 5, 7  # tokens, width, experts, hidden units of one; no two alike
Array = NDArray[Any]


def mixture(
    path: Path, rng: np.random.Generator, int8: bool, kind: str, sizes: tuple[int, ...] = (T, D, E, H)
) -> Path:
    """x [T, N, D] and gates [T, N, E] -> y [T, N, D]: SwiGLU or GELU experts, gated, in the canonical form."""
    t, d, e, h = sizes
    g = Graph(rng, int8)
    up = g.add("Add", g.add("MatMul", "x", g.weight("up.weight", t, d, e * h)), g.bias("up.bias", t, 1, e * h))
    if kind == "gelu":
        hidden = g.add("Gelu", up)
    else:
        gate = g.add("MatMul", "x", g.weight("gate.weight", t, d, e * h))
        gate = g.add("Add", gate, g.bias("gate.bias", t, 1, e * h))
        hidden = g.add("Mul", g.add("Mul", gate, g.add("Sigmoid", gate)), up)
    cut = g.add("Reshape", hidden, g.const("cut", np.array([t, -1, e, h])))
    scaled = g.add("Mul", cut, g.add("Unsqueeze", "gates", g.const("last", np.array([-1]))))
    joined = g.add("Reshape", scaled, g.const("join", np.array([t, -1, e * h])))
    y = g.add("MatMul", joined, g.weight("down.weight", t, e * h, d))
    if kind == "gelu":
        y = g.add("Add", y, g.add("MatMul", "gates", g.bias("shift", t, e, d)))
    g.add("Add", y, "x", out="y")
    float32 = onnx.TensorProto.FLOAT
    return g.save(path, {"x": (float32, [t, "N", d]), "gates": (float32, [t, "N", e])}, {"y": [t, "N", d]})


def feeds(
    rng: np.random.Generator, rows: int, active: int, sizes: tuple[int, ...] = (T, D, E, H)
) -> dict[str, Array]:
    t, d, e, _ = sizes
    scores = rng.uniform(0.1, 1, (t, rows, e))
    gates = np.where(scores.argsort(-1).argsort(-1) >= e - active, scores, 0)
    return {"x": rng.standard_normal((t, rows, d), np.float32), "gates": gates.astype(np.float32)}


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # activations stay FP32
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def lowered_pair(tmp_path: Path, int8: bool, kind: str) -> tuple[Path, LoweredGraph]:
    source = mixture(tmp_path / "dense.onnx", np.random.default_rng(3), int8, kind)
    return source, lower_for_cpu(source, tmp_path / "routed.onnx", min_expert_elements=0)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_routed_equals_dense(tmp_path: Path, int8: bool, kind: str) -> None:
    source, lowered = lowered_pair(tmp_path, int8, kind)
    dense, routed = session(source), session(lowered.path)
    rng = np.random.default_rng(4)
    for rows, active in ((1, 2), (2, 1), (17, 2), (9, E), (4, 0)):
        given = feeds(rng, rows, active)
        expected, got = dense.run(None, given)[0], routed.run(None, given)[0]
        # The same FP32 products, at most 35 per sum and values of order 1, added in another order.
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("single", [False, True], ids=["users", "one user"])
def test_products_computed_once_per_user_are_read_at_the_chosen_rows(
    tmp_path: Path, int8: bool, single: bool
) -> None:
    """A hoisted projection: (x W + u[user_index]) / scale + bias, with u [T, U, E*h] and scale [T, N, 1].

    For one user u is [T, 1, E*h] and broadcasts, and so does another norm's scale [T, 1, 1].
    """
    g = Graph(np.random.default_rng(3), int8)
    of_user = "u" if single else g.add("Gather", "u", "user_index", axis=1)
    total = g.add("Div", g.add("Add", g.add("MatMul", "x", g.weight("up.weight", T, D, E * H)), of_user), "scale")
    hidden = g.add("Gelu", g.add("Add", total, g.bias("up.bias", T, 1, E * H)))
    hidden = g.add("Mul", hidden, "own") if single else hidden
    hidden = g.add("Mul", hidden, g.add("MatMul", "z", g.weight("gate.weight", T, D + 1, E * H)))
    cut = g.add("Reshape", hidden, g.const("cut", np.array([T, -1, E, H])))
    scaled = g.add("Mul", g.add("Unsqueeze", "gates", g.const("last", np.array([-1]))), cut)
    joined = g.add("Reshape", scaled, g.const("join", np.array([T, -1, E * H])))
    g.add("MatMul", joined, g.weight("down.weight", T, E * H, D), out="y")
    f32, i64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    shapes = {"x": D, "z": D + 1, "scale": 1, "gates": E}
    inputs: dict[str, tuple[int, list[Any]]] = {k: (f32, [T, "N", w]) for k, w in shapes.items()}
    if single:
        inputs |= {"u": (f32, [T, 1, E * H]), "own": (f32, [T, 1, 1])}
    else:
        inputs |= {"u": (f32, [T, "U", E * H]), "user_index": (i64, ["N"])}
    source = g.save(tmp_path / "dense.onnx", inputs, {"y": [T, "N", D]})
    routed = lower_for_cpu(source, tmp_path / "routed.onnx", min_expert_elements=0)
    assert len(routed.parts["up.weight"]) == len(routed.parts["gate.weight"]) == T * E
    rng = np.random.default_rng(4)
    for rows, users, active in ((1, 1, 2), (13, 3, 2), (5, 2, 0)):
        given = {**feeds(rng, rows, active), "z": rng.standard_normal((T, rows, D + 1), np.float32)}
        given |= {"scale": rng.uniform(0.5, 2, (T, rows, 1)).astype(np.float32)}
        given |= {"u": rng.standard_normal((T, users, E * H), np.float32)}
        given |= {"user_index": rng.integers(0, users, rows), "own": rng.uniform(1, 2, (T, 1, 1)).astype(np.float32)}
        given["u"] = given["u"][:, :1] if single else given["u"]
        given = {name: given[name] for name in inputs}
        expected, got = (session(path).run(["y"], given)[0] for path in (source, routed.path))
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=1e-5)  # products of two sums of order 1


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_rows_first_at_both_ends_are_never_turned(tmp_path: Path, int8: bool) -> None:
    """x [N, T, D] turned to tokens first, experts, and turned back: rows are read and put together as they lie."""
    g = Graph(np.random.default_rng(3), int8)
    turned = g.add("Transpose", "x", perm=[1, 0, 2])
    hidden = g.add("Gelu", g.add("MatMul", turned, g.weight("up.weight", T, D, E * H)))
    cut = g.add("Reshape", hidden, g.const("cut", np.array([T, -1, E, H])))
    scaled = g.add("Mul", cut, g.add("Unsqueeze", "gates", g.const("last", np.array([-1]))))
    joined = g.add("Reshape", scaled, g.const("join", np.array([T, -1, E * H])))
    y = g.add("MatMul", joined, g.weight("down.weight", T, E * H, D))
    g.add("Transpose", y, out="y", perm=[1, 0, 2])
    float32 = onnx.TensorProto.FLOAT
    inputs: dict[str, tuple[int, list[Any]]] = {"x": (float32, ["N", T, D]), "gates": (float32, [T, "N", E])}
    source = g.save(tmp_path / "dense.onnx", inputs, {"y": ["N", T, D]})
    routed = lower_for_cpu(source, tmp_path / "routed.onnx", min_expert_elements=0).path
    turns = [n for n in onnx.load(routed).graph.node if n.op_type == "Transpose" and n.attribute[0].ints[0] == 1]
    assert not [n for n in turns if len(n.attribute[0].ints) == 3]
    rng = np.random.default_rng(4)
    for rows, active in ((1, 2), (17, 2), (T, E), (4, 0)):
        given = feeds(rng, rows, active)
        given["x"] = np.ascontiguousarray(given["x"].transpose(1, 0, 2))
        expected, got = session(source).run(["y"], given)[0], session(routed).run(["y"], given)[0]
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=1e-5)  # at most 35 products of order 1 per sum


def test_threads_lose_no_sum(tmp_path: Path) -> None:
    """Each row has all its experts' results, also where operators share their work among threads."""
    sizes = (1, 2048, 6, 2)
    source = mixture(tmp_path / "dense.onnx", np.random.default_rng(3), False, "swiglu", sizes)
    routed = lower_for_cpu(source, tmp_path / "routed.onnx", min_expert_elements=0).path
    given = feeds(np.random.default_rng(4), 64, 6, sizes)
    expected, threaded = session(routed).run(None, given)[0], session(routed, threads=4)
    for _ in range(20):
        np.testing.assert_allclose(threaded.run(None, given)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_every_weight_is_there_once(tmp_path: Path, int8: bool) -> None:
    source, lowered = lowered_pair(tmp_path, int8, "swiglu")

    def weights(path: Path) -> dict[str, Array]:
        return {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}

    before, after = weights(source), weights(lowered.path)
    names = {"up.weight", "gate.weight", "down.weight"}
    assert set(lowered.parts) >= names
    for name in names:
        assert len(lowered.parts[name]) == T * E
        assert name not in after
        parts = [after[p] for p in lowered.parts[name]]
        assert all(p.dtype == before[name].dtype for p in parts)
        axis = 0 if name == "down.weight" else 1
        tokens = [np.concatenate(parts[t * E : (t + 1) * E], axis) for t in range(T)]
        np.testing.assert_array_equal(np.stack(tokens), before[name])


def test_an_idle_expert_multiplies_nothing(tmp_path: Path) -> None:
    """With weights of NaN wherever the gate is 0, the dense form is NaN and the routed one is not."""
    source = mixture(tmp_path / "dense.onnx", np.random.default_rng(3), False, "swiglu")
    given = feeds(np.random.default_rng(5), 6, 2)
    given["gates"][:, :, 3] = 0
    expected = session(source).run(None, given)[0]
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name == "down.weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:, 3 * H : 4 * H] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "poisoned.onnx")
    lowered = lower_for_cpu(tmp_path / "poisoned.onnx", tmp_path / "routed.onnx", min_expert_elements=0)
    assert np.isnan(session(tmp_path / "poisoned.onnx").run(None, given)[0]).all()
    np.testing.assert_allclose(session(lowered.path).run(None, given)[0], expected, atol=5e-6, rtol=1e-5)


def test_small_experts_stay_dense(tmp_path: Path) -> None:
    source = mixture(tmp_path / "dense.onnx", np.random.default_rng(3), False, "swiglu")
    elements = 3 * D * H
    at = lower_for_cpu(source, tmp_path / "at.onnx", min_expert_elements=elements)
    above = lower_for_cpu(source, tmp_path / "above.onnx", min_expert_elements=elements + 1)
    assert len(at.parts["up.weight"]) == T * E
    assert len(above.parts["up.weight"]) == T


def test_a_plain_network_is_no_mixture(tmp_path: Path) -> None:
    g = Graph(np.random.default_rng(3), int8=False)
    hidden = g.add("Gelu", g.add("MatMul", "x", g.weight("up.weight", T, D, H)))
    g.add("MatMul", hidden, g.weight("down.weight", T, H, D), out="y")
    source = g.save(tmp_path / "a.onnx", {"x": (onnx.TensorProto.FLOAT, [T, "N", D])}, {"y": [T, "N", D]})
    lowered = lower_for_cpu(source, tmp_path / "b.onnx", min_expert_elements=0)
    assert {len(parts) for parts in lowered.parts.values()} == {T}


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_every_gemm_has_the_rows_that_chose_its_expert(tmp_path: Path, kind: str) -> None:
    """N = 256, E = 8, k = 2: the multiply-adds of all GEMMs together are those of the chosen experts, 1.0 times."""
    sizes = (2, 12, 8, 5)
    source = mixture(tmp_path / "dense.onnx", np.random.default_rng(3), False, kind, sizes)
    lowered = lower_for_cpu(source, tmp_path / "routed.onnx", min_expert_elements=0)
    model = onnx.load(lowered.path)
    experts = {
        name for stacked in ("up.weight", "gate.weight", "down.weight") for name in lowered.parts.get(stacked, ())
    }
    gemms = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    gemms = {out: weight for out, weight in gemms.items() if weight in experts}
    assert sorted(gemms.values()) == sorted(experts)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in gemms)
    onnx.save(model, tmp_path / "watched.onnx")
    given = feeds(np.random.default_rng(4), 256, 2, sizes)
    results = session(tmp_path / "watched.onnx").run(list(gemms), given)
    chosen = (given["gates"] != 0).sum(1)  # [T, E]
    assert chosen.sum() == 2 * 2 * 256
    for weight, result in zip(gemms.values(), results, strict=True):
        t, e = map(int, weight[weight.index("[") + 1 : -1].split(","))
        assert result.shape[0] == chosen[t, e], weight
