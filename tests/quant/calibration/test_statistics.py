"""Statistics of one batch, for every layout in which a product with a weight per feature token reads it."""

from __future__ import annotations

import numpy as np
import pytest

from quant.calibration.statistics import observe

N, T, M, K = 5, 3, 2, 4


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("batch", [(N,), (N, 2), ()])
@pytest.mark.parametrize("tokens", [T, 1])
def test_rows_of_a_token_are_collected_from_every_leading_axis(
    batch: tuple[int, ...], tokens: int, gram: bool
) -> None:
    x = np.random.default_rng(3).normal(size=(*batch, tokens, M, K)).astype(np.float32)
    found = observe(x, T, gram)
    for token in range(T):
        alone = observe(x[..., token % tokens, :, :], 0, gram)
        assert found.count == alone.count
        # Sums of up to 20 float64 products in another order; x itself is summed in float64 too.
        np.testing.assert_allclose(found.squares[token], alone.squares, rtol=1e-12)
        np.testing.assert_allclose(found.sums[token], alone.sums, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(found.low[token], alone.low)
        np.testing.assert_array_equal(found.high[token], alone.high)
        if gram:
            assert found.gram is not None
            np.testing.assert_allclose(found.gram[token], alone.gram, rtol=1e-12, atol=1e-12)
