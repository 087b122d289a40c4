"""Chunks are quantized bit for bit as the numerics quantize the whole weight, in any dtype, layout and tile size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.schemes import numerics
from quant.streaming import chunks

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _weight(rows: int, columns: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(2, (rows, columns)) * np.logspace(-6, 2, columns)
    values[:, rng.integers(columns)] = 0.0  # a zero column
    values[rng.integers(rows)] *= 1e-3
    return torch.from_numpy(values.astype(np.float32)).clamp(-6e4, 6e4).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6), block=st.integers(1, 5), columns=st.integers(1, 40), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000), chunk=st.sampled_from((1, 7, 64, 1 << 17)), transposed=st.booleans(),
    whole=st.booleans(),
)  # fmt: skip
def test_columns_are_quantized_as_the_whole_weight_is(
    rows: int, block: int, columns: int, dtype: torch.dtype, seed: int, chunk: int, transposed: bool, whole: bool
) -> None:
    weight = _weight(rows * block, columns, dtype, seed)
    given_weight = weight.T.contiguous().T if transposed else weight
    block = 0 if whole else block
    scale = numerics.absmax_scale(weight.float().numpy(), block)
    values = numerics.quantize(weight.float().numpy(), scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_TILE_ELEMENTS", chunk)
        found = chunks.quantize_columns(given_weight, block)
    assert found is not None
    assert found.values.dtype == np.int8
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.scale, scale)
    want = numerics.sqnr_db(weight.float().numpy(), numerics.dequantize(values, scale))
    # Sums of at most 1200 float32 squares: relative error below 1200 * 2**-24, far below a thousandth of a dB.
    assert numerics.ratio_db(found.signal, found.noise) == pytest.approx(want, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 30), width=st.integers(1, 9), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_rows_of_a_table_have_a_scale_each(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    table = _weight(rows, width, dtype, seed)
    found = chunks.quantize_rows(table)
    transposed = np.ascontiguousarray(table.float().numpy().T)
    scale = numerics.absmax_scale(transposed)
    assert found is not None
    np.testing.assert_array_equal(found.scale, scale[0])
    np.testing.assert_array_equal(found.values, numerics.quantize(transposed, scale).T)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_not_finite_is_found_wherever_it_is(bad: float, dtype: torch.dtype) -> None:
    for row, column in ((0, 0), (4, 2), (2, 1)):
        weight = _weight(5, 3, dtype, 1)
        weight[row, column] = bad
        assert chunks.quantize_columns(weight, 0) is None
        assert chunks.quantize_rows(weight) is None
        assert chunks.to_fp16(weight) is None


def test_fp16_chunks_are_rounded_and_their_error_counted() -> None:
    weight = torch.tensor([[1.0, 1 + 2.0**-12], [3.0, -2.0]])
    found = chunks.to_fp16(weight)
    assert found is not None
    assert found.scale is None
    np.testing.assert_array_equal(found.values, np.array([[1, 1], [3, -2]], np.float16))
    assert found.noise == 2.0**-24
    assert chunks.to_fp16(torch.tensor([[70000.0]])) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_beyond_the_largest_scale_are_clipped(dtype: torch.dtype) -> None:
    """127 x 65504 is the most int8 with an FP16 scale holds; beyond that values must not wrap around."""
    weight = torch.tensor([[1e9, -3.0], [-2e7, 1.0]], dtype=dtype)
    found = chunks.quantize_columns(weight, 0)
    assert found is not None
    np.testing.assert_array_equal(found.values[:, 0], [127, -127])
    scale = numerics.absmax_scale(weight.float().numpy())
    np.testing.assert_array_equal(found.values, numerics.quantize(weight.float().numpy(), scale))


def test_values_are_written_to_the_given_buffer() -> None:
    weight, buffer = _weight(6, 5, torch.bfloat16, 3), torch.full((40,), 99, dtype=torch.int8)
    found, alone = chunks.quantize_columns(weight, 0, buffer), chunks.quantize_columns(weight, 0)
    assert found is not None
    assert alone is not None
    np.testing.assert_array_equal(found.values, alone.values)
    assert np.shares_memory(found.values, buffer.numpy())
    assert (buffer[30:] == 99).all()
