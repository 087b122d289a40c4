"""Values written to the places of a constant mask, row by row; other masks take values from other rows."""

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import split

PLACES = torch.tensor([[False, True, True], [True, False, False], [False, False, True], [False, False, False]])
COUNT = int(PLACES.sum())


class Written(nn.Module):
    def __init__(self, mask: Tensor, everywhere: bool, count: int = COUNT) -> None:
        super().__init__()
        self.mask, self.everywhere, self.count = nn.Buffer(mask), everywhere, count
        self.scale = nn.Linear(3, 3)

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        mask = self.mask.expand(u.shape[0], -1, -1) if self.everywhere else self.mask
        return self.scale(u).masked_scatter(mask, i[:, : self.count] * 2).flatten(1).cumsum(1)


def example() -> dict[str, Tensor]:
    return {"u": torch.randn(5, 4, 3).double(), "i": torch.randn(5, 6).double()}


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("mask", [PLACES, PLACES[None], torch.tensor([True, False, False])])
def test_each_row_takes_its_own_values(mask: Tensor, everywhere: bool) -> None:
    torch.manual_seed(0)
    model = Written(mask, everywhere and mask.dim() > 1).double().eval()
    # Twelve sums of at most twelve terms of size about 1, against the model as given.
    assert prove_split(split(model, example(), user=["u"], item=["i"]), candidates=(1, 5)).max_rel <= 1e-14


def test_more_values_than_places_would_reach_the_next_row() -> None:
    model = Written(PLACES, everywhere=False, count=COUNT + 1).double().eval()
    with pytest.raises(UgsepError, match=r"masked_scatter\.default .* takes values in one order over all rows; use "):
        split(model, example(), user=["u"], item=["i"])
