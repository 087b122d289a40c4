from __future__ import annotations

import numpy as np

from engines.verify.agreement import agreement


def test_a_column_of_logits_counts_as_the_logits() -> None:
    rng = np.random.default_rng()
    reference = [rng.standard_normal(n) for n in (7, 23, 40)]
    actual = [logits + 0.3 * rng.standard_normal(len(logits)) for logits in reference]
    flat = agreement(reference, actual)
    columns = agreement(columns_of(reference), columns_of(actual))
    assert columns == flat
    assert agreement(columns_of(reference), columns_of(reference)).top_k_overlap == 1.0
    assert flat.kendall_tau < 1.0


def columns_of(requests: list[np.ndarray]) -> list[np.ndarray]:
    return [logits[:, None] for logits in requests]


def test_nan_is_no_agreement() -> None:
    found = agreement([np.array([1.0, 2.0])], [np.array([1.0, np.nan])])
    assert found.rows == 2
    assert np.isnan(found.kendall_tau)
    assert np.isnan(found.top_k_overlap)
