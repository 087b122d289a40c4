"""Random rows hold every pattern of masks and padding, and stay valid for the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graphs.split.fresh_rows import fresh_rows


def drawn(seen: Tensor, rows: int, seed: int = 0) -> Tensor:
    return fresh_rows({"x": seen}, rows, torch.Generator().manual_seed(seed))["x"]


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([False, True]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([0, 1]),
        torch.tensor([0, 1], dtype=torch.uint8),
        torch.tensor([-math.inf, 0.0]),
        torch.tensor([-1e9, 0.0]),
    ],
    ids=["bool", "float", "int", "uint8", "infinite", "large"],
)
def test_masks_have_every_pattern(values: Tensor) -> None:
    for seed in range(5):
        mask = drawn(values[torch.tensor([[0, 1, 1], [1, 0, 1]])], 8, seed)
        assert mask.dtype == values.dtype
        assert set(mask.unique().tolist()) == set(values.tolist())
        first = (mask == values[0]).sum(1).tolist()
        assert first.count(3) >= 2, "rows without a position to keep"
        assert first.count(0) >= 2, "rows that keep all"
    mixed = drawn(values[torch.tensor([[0, 1, 1], [1, 0, 1]])], 400)
    assert len(mixed.unique(dim=0)) == 8


def test_some_sequences_are_all_padding_and_ids_are_not() -> None:
    history = drawn(torch.tensor([[3, 0, 0], [1, 2, 9]]), 200)
    assert 5 < int((history == 0).all(1).sum()) < 60
    ids = drawn(torch.tensor([0, 9]), 200)
    assert set(ids.tolist()) == set(range(10))


def test_two_ids_or_two_numbers_are_no_mask() -> None:
    assert set(drawn(torch.tensor([17, 20]), 200).tolist()) == {17, 18, 19, 20}
    assert len(drawn(torch.tensor([0.5, 2.0]), 200).unique()) == 200


def test_the_whole_range_of_int64_can_be_drawn_and_infinities_do_not_spread() -> None:
    wide = drawn(torch.tensor([[-(2**63), 2**63 - 1, 5]]), 50)
    assert wide.min() < 0 < wide.max()
    assert drawn(torch.tensor([[1.0, math.inf, 3.0]]), 50).isfinite().all()
