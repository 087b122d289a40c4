"""Values without fixed places: converted, joined, and refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from graphs.base.errors import UgsepError
from graphs.trace.jagged.pieces import Pieces
from graphs.trace.jagged.stand_ins import PaddedRows


def rows() -> PaddedRows:
    return PaddedRows.of("f", torch.tensor([[3, 4, 0], [5, 0, 0]]), torch.tensor([2, 1]))


def test_each_value_is_changed_and_padding_stays_zero() -> None:
    values = rows().values()
    assert (values % 4).blocks[0].rows.tolist() == [[3, 0, 0], [1, 0, 0]]
    assert ((values - 7) * 2).blocks[0].rows.tolist() == [[-8, -6, 0], [-4, 0, 0]]
    assert torch.clamp(values + 1, max=5).int().blocks[0].rows.tolist() == [[4, 5, 0], [5, 0, 0]]
    assert (values % 4).blocks[0].same_rows(values.blocks[0])
    assert values.device == torch.device("cpu")


def test_values_are_joined() -> None:
    values, plain = rows().values(), torch.tensor([8, 9])
    joined = torch.cat([plain, values, values])
    assert joined.blocks[0] is plain
    assert joined.blocks[1] is joined.blocks[2] is values.blocks[0]


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda values, _: values + values, "values"),
        (lambda values, _: values % torch.tensor([2, 2, 2]), "values"),
        (lambda values, _: torch.relu(values), "values"),
        (lambda values, _: values[0], "values"),
        (lambda values, _: values.numel(), "values"),
        (lambda values, _: len(values), "values"),
        (lambda values, lengths: torch.cat([values, lengths]), "lengths"),
        # Other lengths are other rows.
        (lambda _, lengths: lengths.long().clamp(max=1), "lengths"),
        (lambda _, lengths: lengths + 1, "lengths"),
    ],
)
def test_whatever_else_reads_them_is_refused(use: Callable[[Any, Any], Any], kind: str) -> None:
    one = rows()
    with pytest.raises(UgsepError, match=f"the model reads the jagged {kind} of 'f', whose rows have"):
        use(one.values(), Pieces("lengths", [one]))
