"""int8 GEMMs on rows quantized in the graph: as exact as their rounding, and no row depends on another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.lowering import lower_for_cpu
from tests.export.lowering_graphs import FFN_SHAPE, Graph, ffn, reference

K, N = 37, 11


def one_gemm(folder: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Return a graph of two int8 GEMMs over the same rows, and its lowered form."""
    g = Graph(rng, True)
    left = g.add("MatMul", "x", g.weight("left.weight", K, N))
    right = g.add("MatMul", "x", g.weight("right.weight", K, N))
    g.add("Add", g.add("Add", left, right), g.bias("bias", N), out="y")
    float_type = onnx.TensorProto.FLOAT
    source = g.save(folder / "a.onnx", {"x": (float_type, ["batch", "rows", K])}, {"y": ["batch", "rows", N]})
    return source, lower_for_cpu(source, folder / "b.onnx", "integer-rows").path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 257)])
def test_a_gemm_errs_by_half_a_step_of_each_row(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    source, lowered = one_gemm(tmp_path, rng)
    x = rng.standard_normal((*shape, K)).astype(np.float32) * rng.uniform(0.01, 100, (*shape, 1)).astype(np.float32)
    want, got = reference(source, {"x": x})["y"], reference(lowered, {"x": x})["y"]
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(source).graph.initializer}
    columns = sum(
        np.abs(weights[f"{n}.weight"] * weights[f"{n}.weight.scale"]).sum(axis=0) for n in ("left", "right")
    )
    # Each activation is off by at most half of its row's step, so a sum by half a step per unit of weight.
    bound = 0.5 * np.abs(x).max(axis=-1, keepdims=True) / 127 * columns
    assert (np.abs(got - want) <= 1.001 * bound + 1e-5).all()
    assert np.abs(got - want).max() > 0, "int8 activations cannot be exact"
    operators = [node.op_type for node in onnx.load(lowered, load_external_data=False).graph.node]
    assert operators.count("Abs") == 1, "rows that two GEMMs read are quantized once"
    assert operators.count("MatMulIntegerToFloat") == 2
    assert "DequantizeLinear" not in operators


def test_a_row_does_not_depend_on_the_others(tmp_path: Path, rng: np.random.Generator) -> None:
    _, lowered = one_gemm(tmp_path, rng)
    x = rng.standard_normal((1, 9, K)).astype(np.float32)
    alone = reference(lowered, {"x": x[:, :1]})["y"]
    louder = np.concatenate([x[:, :1], 1000 * x[:, 1:]], axis=1)
    np.testing.assert_array_equal(reference(lowered, {"x": louder})["y"][:, :1], alone)


def test_a_row_of_zeros_gives_the_bias(tmp_path: Path, rng: np.random.Generator) -> None:
    source, lowered = one_gemm(tmp_path, rng)
    zeros = np.zeros((1, 2, K), np.float32)
    np.testing.assert_array_equal(reference(lowered, {"x": zeros})["y"], reference(source, {"x": zeros})["y"])


def test_per_token_chains(tmp_path: Path, rng: np.random.Generator) -> None:
    tokens, width, _ = FFN_SHAPE
    source = ffn(tmp_path / "a.onnx", rng, True, "swiglu")
    lowered = lower_for_cpu(source, tmp_path / "b.onnx", "integer-rows")
    assert lowered.fused == {"up.weight", "gate.weight", "down.weight", "dense.weight"}
    operators = [node.op_type for node in onnx.load(lowered.path, load_external_data=False).graph.node]
    assert operators.count("MatMulIntegerToFloat") == 3 * tokens + 1
    x = rng.standard_normal((65, tokens, width)).astype(np.float32)
    want, got = reference(source, {"x": x})["click"], reference(lowered.path, {"x": x})["click"]
    # int8 activations: relative error of a row about 1/254 per GEMM; three GEMMs deep, logits of size 1..5.
    assert 0 < np.abs(got - want).max() < 0.2


def test_small_token_weights_are_multiplied_in_one_batch(tmp_path: Path, rng: np.random.Generator) -> None:
    tokens, width, hidden = FFN_SHAPE
    source = ffn(tmp_path / "a.onnx", rng, True, "swiglu")
    apart = lower_for_cpu(source, tmp_path / "apart.onnx", "integer-rows").path
    batched = lower_for_cpu(source, tmp_path / "batched.onnx", "integer-rows", width * hidden + 1)
    assert batched.fused == {"up.weight", "gate.weight", "down.weight", "dense.weight"}
    operators = [node.op_type for node in onnx.load(batched.path, load_external_data=False).graph.node]
    assert operators.count("MatMulIntegerToFloat") == 4
    assert operators.count("Abs") == 3, "rows that gate and up read are rounded once"
    assert "DequantizeLinear" not in operators
    x = rng.standard_normal((65, tokens, width)).astype(np.float32)
    # The same rows, rounded by the same scales, in the same products: only the order of float operations differs,
    # but a value that then rounds to the next step moves what follows by a step.
    got, want = (reference(file, {"x": x})["click"] for file in (batched.path, apart))
    np.testing.assert_allclose(got, want, rtol=0, atol=0.05)
    assert np.median(np.abs(got - want)) < 1e-4


def test_rows_are_rounded_before_they_are_cut_by_token(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, True)
    tokens, k = 3, 8
    norm = g.add("LayerNormalization", "x", g.const("gain", np.ones(k, np.float32)), axis=-1)
    for name in ("left", "right"):
        g.add("MatMul", norm, g.weight(f"{name}.weight", tokens, k, 5), out=name)
    float_type = onnx.TensorProto.FLOAT
    source = g.save(
        tmp_path / "a.onnx",
        {"x": (float_type, [tokens, "rows", k])},
        {name: [tokens, "rows", 5] for name in ("left", "right")},
    )
    lowered = lower_for_cpu(source, tmp_path / "b.onnx", "integer-rows").path
    operators = [node.op_type for node in onnx.load(lowered).graph.node]
    assert operators.count("Abs") == 1
    assert operators.count("MatMulIntegerToFloat") == 2 * tokens
    x = rng.standard_normal((tokens, 7, k)).astype(np.float32)
    for name, want in reference(source, {"x": x}).items():
        # Values are below 8 ** 0.5, weights below 1.5 / 8 ** 0.5; of eight products each is off by half a step.
        assert np.abs(reference(lowered, {"x": x})[name] - want).max() < 8 * 0.5 * 8**0.5 / 127 * 1.5 / 8**0.5
