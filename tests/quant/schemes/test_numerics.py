import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quant.schemes import numerics
from quant.schemes.gptq import gptq, gram_error


def reference_scale(weight: np.ndarray, block: int) -> np.ndarray:
    """absmax / 127 per block and channel in plain FP64 loops, rounded up to FP16."""
    lead = weight.shape[:-2]
    inputs, outputs = weight.shape[-2:]
    rows = block or inputs
    scale = np.zeros((*lead, inputs // rows, outputs))
    for index in np.ndindex(scale.shape):
        *token, b, n = index
        column = weight[(*token, slice(b * rows, (b + 1) * rows), n)].astype(np.float64)
        exact = min(max(np.abs(column).max() / 127, 2.0**-24), 65504.0)
        fp16 = np.float16(exact)
        scale[index] = fp16 if fp16 >= exact else np.nextafter(fp16, np.float16(np.inf))
    return scale


def reference_quantize(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    rows = weight.shape[-2] // scale.shape[-2]
    steps = np.repeat(scale.astype(np.float64), rows, axis=-2)
    return np.clip(np.rint(weight / steps), -127, 127)


def reference_error(weight, values, scale, moments) -> np.ndarray:
    steps = np.repeat(scale.astype(np.float64), weight.shape[-2] // scale.shape[-2], axis=-2)
    difference = weight.astype(np.float64) - values.astype(np.float64) * steps
    return (difference**2 * np.asarray(moments, np.float64)[..., :, None]).sum(axis=-2)


# Matrices with outliers, zeros, denormals and single rows come out of this one strategy: the elements are drawn
# from all finite magnitudes that a weight may have.
elements = st.one_of(
    st.floats(-4, 4, width=32),
    st.just(0.0),
    st.floats(-1000, 1000, width=32),
    st.sampled_from([1e-40, -3e-42, 1e-9, 2.0**-24, 8192.0]),
)
shapes = st.one_of(
    st.tuples(st.integers(1, 24), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5)),
)


@st.composite
def weights_and_moments(draw):
    shape = draw(shapes)
    weight = draw(hnp.arrays(np.float32, shape, elements=elements))
    moments = draw(hnp.arrays(np.float64, shape[:-1], elements=st.floats(0, 100)))
    inputs = shape[-2]
    block = draw(st.sampled_from([0, *(b for b in range(1, inputs + 1) if inputs % b == 0)]))
    return weight, moments, block


@given(weights_and_moments())
@settings(deadline=None, max_examples=150)
def test_absmax_matches_the_reference_and_errs_by_half_a_step(case) -> None:
    weight, _, block = case
    scale = numerics.absmax_scale(weight, block)
    np.testing.assert_array_equal(scale, reference_scale(weight, block))
    values = numerics.quantize(weight, scale)
    # float32 division may fall on the other side of a tie than float64: one step apart at most, and rarely
    assert np.abs(values - reference_quantize(weight, scale)).max() <= 1
    steps = np.repeat(scale, weight.shape[-2] // scale.shape[-2], axis=-2)
    restored = numerics.dequantize(values, scale)
    # half a step, plus float32 rounding of the quotient (127 * 2^-24 steps) and of the product
    assert (np.abs(restored - weight) <= steps * (0.5 + 2e-5)).all()


@given(weights_and_moments())
@settings(deadline=None, max_examples=150)
def test_mse_is_never_worse_than_absmax(case) -> None:
    weight, moments, block = case
    plain = numerics.absmax_scale(weight, block)
    scale = numerics.mse_scale(weight, moments, block, threads=1)
    before = reference_error(weight, numerics.quantize(weight, plain), plain, moments)
    after = reference_error(weight, numerics.quantize(weight, scale), scale, moments)
    # the search compares float32 sums over K <= 24 terms: relative error below 24 * 2^-23 plus ties in rounding,
    # and products below float32's denormals vanish
    assert (after <= before * (1 + 1e-4) + 1e-30 * (1 + moments.max())).all()
    assert (scale <= plain).all()


def test_scales_are_exact_in_fp16() -> None:
    r = np.random.default_rng()
    weight = (r.standard_normal((33, 9)) * 10.0 ** r.uniform(-9, 3, 9)).astype(np.float32)
    for scale in (numerics.absmax_scale(weight), numerics.mse_scale(weight, np.ones(33))):
        np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))


def test_mse_clips_a_lone_outlier_on_a_silent_input() -> None:
    r = np.random.default_rng()
    weight = r.standard_normal((2, 64, 5)).astype(np.float32)
    weight[:, 7] = 9.0  # sets the absmax scale, but nothing ever enters there
    moments = np.ones((2, 64))
    moments[:, 7] = 0.0
    scale = numerics.mse_scale(weight, moments)
    plain = numerics.absmax_scale(weight)
    before = reference_error(weight, numerics.quantize(weight, plain), plain, moments)
    after = reference_error(weight, numerics.quantize(weight, scale), scale, moments)
    # the step may shrink to 40 %, the noise to 16 % (more if 0.4 * 9 still clips others)
    assert (after < 0.5 * before).all()


@pytest.mark.parametrize("shape", [(48, 7), (3, 48, 7)])
@pytest.mark.parametrize("block", [0, 16])
def test_chunks_and_threads_do_not_change_the_result(monkeypatch, shape, block) -> None:
    r = np.random.default_rng()
    weight = r.standard_t(2, shape).astype(np.float32)
    moments = r.random(shape[:-1])
    whole = numerics.mse_scale(weight, moments, block, threads=1)
    monkeypatch.setattr(numerics, "_CHUNK_ELEMENTS", 100)
    np.testing.assert_array_equal(numerics.mse_scale(weight, moments, block, threads=2), whole)
    assert whole.shape == (*shape[:-2], 48 // block if block else 1, 7)


def test_sqnr_of_known_noise() -> None:
    signal = np.array([3.0, 4.0])
    assert numerics.sqnr_db(signal, signal + np.array([0.5, 0.0])) == pytest.approx(20.0)
    assert numerics.sqnr_db(signal, signal) == np.inf


def test_block_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="block 5 does not divide K = 12"):
        numerics.absmax_scale(np.ones((12, 2), np.float32), 5)


def correlated(r: np.random.Generator, rows: int, inputs: int) -> np.ndarray:
    mixing = r.standard_normal((max(1, inputs // 3), inputs))
    return r.standard_normal((rows, len(mixing))) @ mixing + 0.1 * r.standard_normal((rows, inputs))


def reference_gptq(weight: np.ndarray, scale: np.ndarray, gram: np.ndarray, damping: float) -> np.ndarray:
    """Optimal brain quantization row by row with an explicitly inverted matrix, FP64, no blocking."""
    order = np.argsort(-np.diag(gram), kind="stable")
    rest = weight[order].astype(np.float64)
    matrix = gram[np.ix_(order, order)] + damping * np.diag(gram).mean() * np.eye(len(gram))
    steps = np.repeat(scale, len(weight) // len(scale), axis=0)[order].astype(np.float64)
    values = np.zeros(weight.shape)
    for i in range(len(weight)):
        inverse = np.linalg.inv(matrix[i:, i:])
        values[i] = np.clip(np.rint(rest[i] / steps[i]), -127, 127)
        error = (rest[i] - values[i] * steps[i]) / inverse[0, 0]
        rest[i:] -= np.outer(inverse[:, 0], error)
    found = np.empty_like(values)
    found[order] = values
    return found


@pytest.mark.parametrize(("inputs", "outputs", "block"), [(40, 9, 0), (40, 9, 8), (150, 6, 0), (1, 3, 0)])
def test_gptq_matches_the_textbook_form(inputs, outputs, block) -> None:
    r = np.random.default_rng()
    weight = r.standard_normal((inputs, outputs)).astype(np.float32)
    x = correlated(r, 500, inputs)
    gram = x.T @ x
    scale = numerics.absmax_scale(weight, block)
    found, used = gptq(weight, scale, gram)
    np.testing.assert_array_equal(used, scale)
    expected = reference_gptq(weight, scale, gram, 0.01)
    # float32 feedback may flip a tie, after which a channel takes another, equally good path: compare the errors
    ours, theirs = (gram_error(weight, v, scale, gram).sum() for v in (found, expected.astype(np.int8)))
    assert ours <= theirs * 1.05
    if inputs > 1:
        plain = gram_error(weight, numerics.quantize(weight, scale), scale, gram).sum()
        assert ours < 0.7 * plain  # correlated inputs: feedback must help much


@given(weights_and_moments(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_gptq_is_never_worse_than_rounding(case, seed) -> None:
    weight, _, block = case
    weight = weight.reshape(-1, *weight.shape[-2:])[0]
    x = correlated(np.random.default_rng(seed), 50, weight.shape[0])
    x[:, seed % weight.shape[0]] = 0  # a dead input makes the Gram matrix singular
    gram = x.T @ x
    scale = numerics.absmax_scale(weight, block)
    exact = [
        np.einsum("kn,kl,ln->n", d, gram, d)
        for d in (
            weight - numerics.dequantize(v, scale).astype(np.float64)
            for v in (gptq(weight, scale, gram)[0], numerics.quantize(weight, scale))
        )
    ]
    # compared in float32: errors within 1e-4 of each other count as equal
    assert (exact[0] <= exact[1] * (1 + 1e-4) + 1e-25 * gram.max()).all()
