"""int8 GEMMs with calibrated ranges: as exact as their rounding, saturating, and no row depends on another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.activations import ActivationRange, activations_text, range_between
from export.io import stamp
from export.lowering import LoweredGraph, lower_for_cpu
from graphs.base.errors import UgsepError
from tests.export.lowering_graphs import FFN_SHAPE, Graph, ffn, reference

K, N = 37, 11
FLOAT = onnx.TensorProto.FLOAT
Ranges = Mapping[str, tuple[float, float]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def stamped(source: Path, ranges: Ranges) -> dict[str, ActivationRange]:
    """Stamp a graph with ranges of the inputs of its weights."""
    found = {weight: range_between(*ends) for weight, ends in ranges.items()}
    kept = {weight: between for weight, between in found.items() if between is not None}
    assert len(kept) == len(ranges)
    model = onnx.load(source, load_external_data=False)
    stamp(model, activations=activations_text(kept))
    onnx.save(model, source)
    return kept


def lower(source: Path, min_token_elements: int = 0) -> LoweredGraph:
    return lower_for_cpu(source, source.with_name("lowered.onnx"), "calibrated-rows", min_token_elements)


def two_gemms(folder: Path, rng: np.random.Generator, ranges: Ranges) -> tuple[Path, LoweredGraph]:
    """Two int8 GEMMs over the same rows, the left one with a bias, and their lowered form."""
    g = Graph(rng, True)
    left = g.add("MatMul", "x", g.weight("left.weight", K, N))
    g.add("Add", left, g.bias("left.bias", N), out="left")
    g.add("MatMul", "x", g.weight("right.weight", K, N), out="right")
    ends = {name: ["batch", "rows", N] for name in ("left", "right")}
    source = g.save(folder / "a.onnx", {"x": (FLOAT, ["batch", "rows", K])}, ends)
    stamped(source, ranges)
    return source, lower(source)


def operators(graph: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)


def exact(source: Path, name: str, x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x @ weight (+ bias) in FP64 from the constants of a graph, and the sums of |weight| per column."""
    held = {i.name: onnx.numpy_helper.to_array(i, str(source.parent)) for i in onnx.load(source).graph.initializer}
    weight = held[f"{name}.weight"] * held[f"{name}.weight.scale"].astype(np.float64)
    return x.astype(np.float64) @ weight + held.get(f"{name}.bias", 0.0), np.abs(weight).sum(axis=0)


BOTH = {"left.weight": (-1.0, 7.0), "right.weight": (-1.0, 7.0)}


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 257)])
def test_a_gemm_errs_by_half_a_step(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    source, lowered = two_gemms(tmp_path, rng, BOTH)
    assert lowered.fused == lowered.calibrated == {"left.weight", "right.weight"}
    x = rng.uniform(-1, 7, (*shape, K)).astype(np.float32)
    got = reference(lowered.path, {"x": x})
    for name in ("left", "right"):
        want, columns = exact(source, name, x)
        # Half a step per activation, another half at the ends, because the zero point is a whole step; then the
        # float32 product of an exact integer sum with its scale, relative to the largest sum there can be.
        bound = 8 / 255 * columns
        assert (np.abs(got[name] - want) <= bound + 1e-6 * 7 * columns).all()
        assert np.abs(got[name] - want).max() > 0, "int8 activations cannot be exact"
    assert operators(lowered.path) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2}


def test_values_inside_the_range_err_by_half_a_step_of_the_tensor(tmp_path: Path, rng: np.random.Generator) -> None:
    source, lowered = two_gemms(tmp_path, rng, BOTH)
    x = rng.uniform(-0.9, 6.9, (3, 50, K)).astype(np.float32)
    want, columns = exact(source, "right", x)
    errors = np.abs(reference(lowered.path, {"x": x})["right"] - want)
    assert (errors <= 0.5 * 8 / 255 * columns * (1 + 1e-5)).all()
    # Independent rounding errors, uniform within half a step: the root of K variances of step ** 2 / 12.
    assert 0.5 < np.sqrt((errors**2).mean() / ((8 / 255) ** 2 / 12 * (columns**2).mean() / K * 1.25)) < 2


def test_values_beyond_the_range_saturate(tmp_path: Path, rng: np.random.Generator) -> None:
    _, lowered = two_gemms(tmp_path, rng, BOTH)
    found = range_between(-1.0, 7.0)
    assert found is not None
    x = rng.uniform(-1, 7, (2, 9, K)).astype(np.float32)
    x[0, 0, :5] = [-1000, 1000, -3, 30, 3e38]
    clipped = np.clip(x, found.low, found.high).astype(np.float32)
    got, want = (reference(lowered.path, {"x": values}) for values in (x, clipped))
    for name in got:
        np.testing.assert_array_equal(got[name], want[name])


def test_a_row_does_not_depend_on_the_others(tmp_path: Path, rng: np.random.Generator) -> None:
    _, lowered = two_gemms(tmp_path, rng, BOTH)
    x = rng.standard_normal((1, 9, K)).astype(np.float32)
    alone = reference(lowered.path, {"x": x[:, :1]})
    louder = np.concatenate([x[:, :1], 1000 * x[:, 1:]], axis=1)
    together = reference(lowered.path, {"x": louder})
    for name, want in alone.items():
        np.testing.assert_array_equal(together[name][:, :1], want)


def test_zeros_give_the_bias(tmp_path: Path, rng: np.random.Generator) -> None:
    source, lowered = two_gemms(tmp_path, rng, BOTH)
    zeros = np.zeros((1, 2, K), np.float32)
    got, want = reference(lowered.path, {"x": zeros}), reference(source, {"x": zeros})
    for name in got:
        np.testing.assert_array_equal(got[name], want[name])


def test_a_weight_without_a_range_scales_every_row(tmp_path: Path, rng: np.random.Generator) -> None:
    source, lowered = two_gemms(tmp_path, rng, {"left.weight": (-1.0, 7.0)})
    assert lowered.fused == {"left.weight", "right.weight"}
    assert lowered.calibrated == {"left.weight"}
    assert operators(lowered.path)["MatMulIntegerToFloat"] == 2
    x = 1000 * rng.standard_normal((1, 5, K)).astype(np.float32)  # far beyond the range of the other weight
    want, columns = exact(source, "right", x)
    bound = 0.5 * np.abs(x).max(axis=-1, keepdims=True) / 127 * columns
    assert (np.abs(reference(lowered.path, {"x": x})["right"] - want) <= 1.001 * bound).all()


def test_a_tensor_is_rounded_once_for_each_range(tmp_path: Path, rng: np.random.Generator) -> None:
    source, lowered = two_gemms(tmp_path, rng, {"left.weight": (-1.0, 7.0), "right.weight": (-9.0, 2.0)})
    assert operators(lowered.path)["QuantizeLinear"] == 2
    x = rng.uniform(-0.9, 1.9, (1, 5, K)).astype(np.float32)
    for name, width in (("left", 8.0), ("right", 11.0)):
        want, columns = exact(source, name, x)
        errors = np.abs(reference(lowered.path, {"x": x})[name] - want)
        assert (errors <= 0.5 * width / 255 * columns * (1 + 1e-5) + 1e-6 * width * columns).all()


def test_a_graph_without_ranges_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, True)
    g.add("MatMul", "x", g.weight("weight", K, N), out="y")
    source = g.save(tmp_path / "a.onnx", {"x": (FLOAT, ["rows", K])}, {"y": ["rows", N]})
    with pytest.raises(UgsepError, match=r"a.onnx' has no ranges of activations; quantize it again"):
        lower(source)


def test_a_product_that_others_read_keeps_its_bias_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, True)
    product = g.add("MatMul", "x", g.weight("weight", K, N), out="product")
    g.add("Add", g.bias("bias", N), product, out="y")
    ends = {"product": ["rows", N], "y": ["rows", N]}
    source = g.save(tmp_path / "a.onnx", {"x": (FLOAT, ["rows", K])}, ends)
    stamped(source, {"weight": (-4.0, 4.0)})
    lowered = lower(source).path
    assert operators(lowered)["Add"] == 1
    got = reference(lowered, {"x": rng.standard_normal((3, K)).astype(np.float32)})
    bias = onnx.numpy_helper.to_array(next(i for i in onnx.load(source).graph.initializer if i.name == "bias"))
    np.testing.assert_allclose(got["y"], got["product"] + bias, rtol=1e-6)


@pytest.mark.parametrize("min_token_elements", [0, 1 << 20])
def test_feature_tokens(tmp_path: Path, rng: np.random.Generator, min_token_elements: int) -> None:
    tokens, width, _ = FFN_SHAPE
    source = ffn(tmp_path / "a.onnx", rng, True, "swiglu")
    x = rng.standard_normal((65, tokens, width)).astype(np.float32)
    # The second layer of a SwiGLU of normal numbers, and the dense one after a norm of tokens * width values.
    wide = (-60.0, 60.0)
    ranges = {"up.weight": (-5.0, 5.0), "gate.weight": (-5.0, 5.0), "down.weight": wide, "dense.weight": (-6.0, 6.0)}
    stamped(source, ranges)
    lowered = lower(source, min_token_elements)
    assert lowered.calibrated == lowered.fused == set(ranges)
    apart = min_token_elements == 0
    found = operators(lowered.path)
    assert found["MatMulIntegerToFloat"] == (3 * tokens + 1 if apart else 4)
    # Tokens are cut after they are rounded; what is computed per token is rounded per token.
    assert found["QuantizeLinear"] == (1 + tokens + 1 if apart else 3)
    assert found["DequantizeLinear"] == found["Abs"] == 0
    want, got = reference(source, {"x": x})["click"], reference(lowered.path, {"x": x})["click"]
    # Steps of 10 / 255, 120 / 255 and 12 / 255 instead of 1 / 127 of a row's size: a few times the error that
    # the same graph has with a scale per row.
    assert 0 < np.abs(got - want).max() < 1.0
    assert np.corrcoef(got, want)[0, 1] > 0.9


def test_slices_that_others_read_are_rounded_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    g = Graph(rng, True)
    tokens, k = 3, 8
    g.add("MatMul", "x", g.weight("token.weight", tokens, k, 5), out="y")
    g.add("MatMul", "x", g.weight("other.weight", tokens, k, 7), out="z")
    source = g.save(
        tmp_path / "a.onnx",
        {"x": (FLOAT, [tokens, "rows", k])},
        {"y": [tokens, "rows", 5], "z": [tokens, "rows", 7]},
    )
    stamped(source, {"token.weight": (-4.0, 4.0), "other.weight": (-5.0, 4.0)})
    lowered = lower(source)
    assert operators(lowered.path)["QuantizeLinear"] == 2 * tokens
    x = rng.uniform(-3.9, 3.9, (tokens, 4, k)).astype(np.float32)
    for name, want in reference(source, {"x": x}).items():
        # Eight products, each off by half a step of at most 9 / 255, of weights below 1.5 / 8 ** 0.5.
        assert np.abs(reference(lowered.path, {"x": x})[name] - want).max() < 8 * 0.5 * 9 / 255 * 1.5 / 8**0.5
