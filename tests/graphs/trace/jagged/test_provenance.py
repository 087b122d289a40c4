"""What tensors were made of: known only where it is so for any input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from graphs.trace.jagged.pieces import Pieces
from graphs.trace.jagged.provenance import Provenance

A, B = torch.tensor([5, 6, 7]), torch.tensor([1, 2, 3])

JOINED: dict[str, Callable[[], Tensor]] = {
    "cat": lambda: torch.cat([A, B]),
    "cat along the last axis": lambda: torch.concat([A, B], dim=-1),
    "stack": lambda: torch.stack([A, B]).flatten(),
    "turned stack": lambda: torch.stack([A, B], dim=1).T.reshape(-1),
    "transposed stack": lambda: torch.stack([A, B], -1).transpose(0, 1).contiguous().view(-1),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_tensors_are_told_apart(name: str) -> None:
    with Provenance() as noted:
        joined = JOINED[name]()
        assert [p.tolist() for p in noted.pieces(joined)] == [[5, 6, 7], [1, 2, 3]]
        assert [p.tolist() for p in noted.pieces((joined % 4).int())] == [[1, 2, 3], [1, 2, 3]]
        assert [p.tolist() for p in noted.pieces(torch.cat([joined, A]))] == [[5, 6, 7], [1, 2, 3], [5, 6, 7]]
        assert len(noted.pieces(joined + joined)) == 1, "of two tensors"
        assert len(noted.pieces(torch.stack([A, B], 1).flatten())) == 1, "row by row"


def test_numbers_that_are_the_same_for_any_input() -> None:
    with Provenance() as noted:
        ones = torch.ones(6, dtype=torch.int32)
        for same in (ones, ones.long()[:2], torch.ones_like(A).repeat(2), torch.cat([ones, A.new_ones(3)])):
            assert noted.constant(same) == 1
        assert noted.constant(torch.full((3,), 5)) == 5
        assert noted.constant(torch.full_like(A, 4)) == 4
        assert noted.constant(A.new_full((3,), 2)) == 2
        for other in (A, ones + 1, torch.cat([ones, A]), torch.tensor([1, 1]), torch.full((2,), 0.5)):
            assert noted.constant(other) is None


@pytest.mark.parametrize("change", ["item", "view", "+=", "method"])
def test_a_tensor_that_is_written_into_is_unknown(change: str) -> None:
    with Provenance() as noted:
        ones = torch.ones(4, dtype=torch.int64)
        if change == "item":
            ones[1] = 2
        elif change == "view":
            ones.view(2, 2)[:, 0].fill_(3)
        elif change == "+=":
            ones += 1
        else:
            ones.scatter_(0, B, 2)
        assert noted.constant(ones) is None


def test_offsets_of_known_lengths() -> None:
    zero = torch.zeros(1, dtype=torch.int64)
    with Provenance() as noted:
        assert noted.lengths_of_offsets(torch.arange(7).int()) == 1
        assert noted.lengths_of_offsets(torch.arange(0, 7)) == 1
        assert noted.lengths_of_offsets(functional.pad(A.cumsum(0), (1, 0)).int()) is A
        assert noted.lengths_of_offsets(torch.cat([torch.zeros(1, dtype=torch.int64), A.cumsum(0)])) is A
        for other in (
            *(A, torch.arange(1, 7), torch.arange(0, 14, 2), A.cumsum(0), functional.pad(A.cumsum(0), (0, 1))),
            *(functional.pad(A.cumsum(0), (1, 0), value=2), torch.cat([zero + 1, A.cumsum(0)]), torch.cat([A, B])),
        ):
            assert noted.lengths_of_offsets(other) is None


def test_masks_of_the_first_places() -> None:
    ids = torch.tensor([[3, 4, 0], [5, 0, 0], [6, 7, 8]])
    lengths = torch.tensor([2, 1, 3])
    with Provenance() as noted:
        for mask in (
            torch.arange(3) < lengths.unsqueeze(1),
            lengths[:, None] > torch.arange(3)[None, :],
            torch.arange(3).expand(3, -1) < lengths.unsqueeze(-1),
        ):
            picked = ids[mask]
            assert isinstance(picked, Pieces)
            assert picked.blocks[0].counts is lengths
            assert ids.float()[mask].kind == "values"
        for mask in (
            torch.arange(3).unsqueeze(1).expand(3, 3) < lengths.unsqueeze(1),
            torch.arange(1, 4) <= lengths[:, None],
        ):
            picked = ids[mask]
            assert isinstance(picked, Pieces)
            assert picked.blocks[0].counts is not lengths
            assert torch.equal(picked.blocks[0].filled(), mask)
            assert isinstance(ids.float()[mask], Tensor), "no ids, and no first places"
        assert isinstance(ids[lengths > 1], Tensor), "whole rows"
        assert noted.counts_up(torch.arange(3)[None, :].long())
        assert not noted.counts_up(torch.arange(3)[1:])
        assert not noted.counts_up(torch.arange(4).reshape(2, 2))
