"""Ops without a row rule are decomposed, exactly, before they are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import split
from tests.graphs.small_models import Keywords
from tests.graphs.unfamiliar_models import LENGTH, ROWS, UNFAMILIAR, WIDTH, unfamiliar
from tests.suites import slow_but

# Sums of at most a few hundred terms of size about 1 in double precision.
EXACT = 1e-13


#: One of each kind in every run; the others take seconds each.
OF_EACH_KIND = (
    *("bilinear", "einsum with an ellipsis", "gru cells", "index_add", "cdist", "searchsorted", "quantile"),
    *("rotary embedding", "filtered history"),
)


@pytest.mark.parametrize("name", slow_but(OF_EACH_KIND, UNFAMILIAR))
def test_an_unfamiliar_op_is_split_exactly(name: str) -> None:
    model, example = unfamiliar(name, torch.float64)
    found = split(model, example, user=["u"], item=["i"])
    # Against the model as given, so that the decomposition is compared too.
    assert prove_split(found, candidates=(1, 33)).max_rel <= EXACT


def test_a_bilinear_product_with_the_user_is_computed_once() -> None:
    model, example = unfamiliar("bilinear", torch.float64)
    (state,) = split(model, example, user=["u"], item=["i"]).state
    assert state.row_shape == (LENGTH, 3, WIDTH)


@pytest.mark.parametrize(
    ("values", "right"), [([0.5, float("nan"), float("inf"), 1.0], False), ([1.0, 1.5, float("-inf"), 0.0], True)]
)
def test_searches_treat_nan_and_ties_as_pytorch_does(values: list[float], right: bool) -> None:
    model = Keywords(
        lambda m, u, i: torch.searchsorted(m.edges, u + m.odd * (i * 0 + 1), right=right).double(),
        edges=torch.tensor([0.0, 1.0, 1.0, 2.0]),
        odd=torch.tensor(values),
    )
    example = {"u": torch.zeros(ROWS, 4), "i": torch.randn(ROWS, 4)}
    found = split(model, example, user=["u"], item=["i"])
    assert torch.equal(found.full(example)["output"], model(**example))


def test_an_op_that_has_no_decomposition_is_still_refused() -> None:
    model = Keywords(lambda m, u, i: u.masked_scatter(u > 0, i).sum(1))
    example = {"u": torch.randn(ROWS, WIDTH), "i": torch.randn(ROWS, WIDTH)}
    with pytest.raises(UgsepError, match=r"masked_scatter\.default in the model .* use torch\.where"):
        split(model, example, user=["u"], item=["i"])


def test_values_chosen_by_a_mask_are_refused_with_a_remedy() -> None:
    mask = torch.ones(WIDTH, WIDTH).triu(1) > 0

    def pairs(m: Any, u: Tensor, i: Tensor) -> Tensor:
        products = (u * i).unsqueeze(2) * (u + i).unsqueeze(1)  # [N, D, D]
        return m.chosen(products).sum(1)

    example = {"u": torch.randn(ROWS, WIDTH), "i": torch.randn(ROWS, WIDTH)}
    pairs_of = mask.sum().item()
    model = Keywords(pairs)
    model.chosen = lambda x: torch.masked_select(x, mask).view(-1, pairs_of)
    with pytest.raises(UgsepError, match=r"masked_select\.default .* find its positions in __init__"):
        split(model, example, user=["u"], item=["i"])
    positions = mask.flatten().nonzero()[:, 0]
    model.chosen = lambda x: x.flatten(1)[:, positions]  # what the message says
    assert torch.allclose(split(model, example, user=["u"], item=["i"]).full(example)["output"], model(**example))


def test_packed_sequences_are_refused_with_a_remedy() -> None:
    def work(m: Any, u: Tensor, i: Tensor) -> Tensor:
        lengths = (u[:, :, 0] > 0).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(u, lengths, batch_first=True, enforce_sorted=False)
        return (m.gru(packed)[1][0] * i).sum(1)  # type: ignore[no-any-return]  # a layer

    model = Keywords(work, gru=nn.GRU(WIDTH, WIDTH, batch_first=True)).eval()
    example = {"u": torch.randn(ROWS, LENGTH, WIDTH), "i": torch.randn(ROWS, WIDTH)}
    with pytest.raises(UgsepError, match=r"packed sequence, .* at test_familiar\.py:.* torch\.gather$"):
        split(model, example, user=["u"], item=["i"])
