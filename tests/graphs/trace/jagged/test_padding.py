"""KeyedJaggedTensors as padded tensors."""

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
    with pytest.raises(UgsepError, match=r"a row of feature 'h' has not exactly one id; declare --max-lengths h=K"):
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
