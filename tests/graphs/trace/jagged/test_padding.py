"""KeyedJaggedTensors as padded tensors."""

from typing import Any

import pytest
import torch

from graphs.base.errors import UgsepError
from graphs.trace.jagged.padding import pad, padded
from tests.graphs.torchrec_models import needs_torchrec


def test_rows_are_padded_with_zeros() -> None:
    rows = padded(torch.tensor([4, 5, 6]), torch.tensor([2, 0, 1]), 3)
    assert rows.tolist() == [[4, 5, 0], [0, 0, 0], [6, 0, 0]]


@needs_torchrec
def test_each_feature_becomes_its_inputs() -> None:
    from torchrec import KeyedJaggedTensor

    keyed = KeyedJaggedTensor(
        keys=["h", "i"],
        values=torch.tensor([1, 2, 3, 7, 8]),
        lengths=torch.tensor([3, 0, 1, 1]),
        weights=torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8]),
    )
    found = {name: value.tolist() for name, value in pad(keyed, {"h": 3}).items()}
    weights = [[pytest.approx(w) for w in row] for row in ([0.1, 0.2, 0.3], [0, 0, 0])]
    assert found == {
        "h.values": [[1, 2, 3], [0, 0, 0]],
        "h.lengths": [3, 0],
        "h.weights": weights,
        "i": [7, 8],
        "i.weights": [pytest.approx(0.7), pytest.approx(0.8)],
    }


@needs_torchrec
def test_other_numbers_of_ids_than_declared_are_refused() -> None:
    from torchrec import KeyedJaggedTensor

    keyed = KeyedJaggedTensor(keys=["h"], values=torch.tensor([1, 2, 3]), lengths=torch.tensor([3, 0]))
    with pytest.raises(UgsepError, match=r"a row of feature 'h' has 3 ids, but 2 at most .* --max-lengths h=3"):
        pad(keyed, {"h": 2})
    with pytest.raises(UgsepError, match=r"a row of feature 'h' has not exactly one id; declare --max-lengths h=3"):
        pad(keyed, {})


@needs_torchrec
def test_another_number_of_rows_per_feature_is_refused() -> None:
    from torchrec import KeyedJaggedTensor

    keyed = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([1, 2, 3]),
        lengths=torch.tensor([1, 1, 1]),
        stride_per_key_per_rank=[[2], [1]],
    )
    with pytest.raises(UgsepError, match="another number of rows per feature"):
        pad(keyed, {})


@needs_torchrec
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [2, -1, 1, 1]}, "a row of -1 ids; give lengths of 0 or more"),
        (
            {"lengths": None, "offsets": [0, 2, 1, 2, 3]},
            "a row of -1 ids; .* and offsets that do",
        ),
        ({"lengths": [2, 0, 1, 1]}, "has 3 ids and lengths of 4; give it lengths that add up"),
        ({"lengths": [1, 1, 1], "stride": 2}, "of 2 features and 2 rows has 3 lengths; give it 4"),
        ({"weights": [0.5, 0.25]}, "has 2 weights for 3 ids; give each id its weight"),
        ({"keys": ["h", "h"]}, "has feature 'h' twice"),
    ],
)
def test_what_is_not_whole_is_refused(changes: dict[str, Any], message: str) -> None:
    from torchrec import KeyedJaggedTensor

    given = {"keys": ["h", "i"], "values": [5, 6, 7], "lengths": [1, 0, 1, 1], **changes}
    given = {k: torch.tensor(v) if isinstance(v, list) and k != "keys" else v for k, v in given.items()}
    with pytest.raises(UgsepError, match=message):
        pad(KeyedJaggedTensor(**given), {"h": 3, "i": 3})


@needs_torchrec
def test_features_whose_inputs_have_one_name_are_refused() -> None:
    from torchrec import KeyedJaggedTensor

    keyed = KeyedJaggedTensor(keys=["h", "h.values"], values=torch.tensor([1, 2]), lengths=torch.tensor([1, 1]))
    with pytest.raises(UgsepError, match=r"two features have an input 'h\.values'; rename feature 'h\.values'"):
        pad(keyed, {"h": 3})
