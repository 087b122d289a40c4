"""A warning, or an error below a share that was asked for, says what keeps user and item together."""

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.explain.reuse import check_reuse, little_reuse
from graphs.split.split import Split, split
from tests.graphs.small_models import D, Keywords, N, small
from tests.graphs.split.blocks.sequence_models import COUPLED, Sequence, sequence_example


def meeting() -> Split:
    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    return split(Keywords(lambda m, u, i: (u * i).sum(-1)), example, user=["u"], item=["i"])


def test_a_split_that_saves_much_is_not_warned_about() -> None:
    good = small("user only output")
    assert little_reuse(good) == ""
    check_reuse(good, good.reusable_share)
    with pytest.raises(UgsepError, match=r"less than --min-reuse 0\.99;"):
        check_reuse(good, 0.99)


def test_the_join_of_user_and_item_is_named() -> None:
    assert little_reuse(meeting()).startswith(
        "only 0.0% of the FLOPs run once per request; mul.Tensor in the model ("
    )
    check_reuse(meeting(), 0.0)
    with pytest.raises(UgsepError, match=r"^0\.0% of the FLOPs .* mul\.Tensor in the model .* \(UG-Sep\)"):
        check_reuse(meeting(), 0.01)
    with pytest.raises(UgsepError):
        check_reuse(meeting(), float("nan"))


def test_the_attention_without_a_mask_is_named() -> None:
    torch.manual_seed(0)
    name = next(iter(COUPLED))
    model = Sequence(COUPLED[name]).eval()
    found = split(model, sequence_example(), user=["history"], item=["item"])
    with pytest.raises(UgsepError, match="lets user positions see item positions; hide these by a constant mask"):
        check_reuse(found, 1.0)


def test_a_model_whose_user_side_is_small() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Linear(D, 1000)

        def forward(self, u: Tensor, i: Tensor) -> dict[str, Tensor]:
            return {"item": self.large(i), "user": u.exp()}

    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    found = split(Apart().eval(), example, user=["u"], item=["i"])
    assert "name all inputs that the candidates of a request share as user inputs" in little_reuse(found)
