"""What stands in for TorchRec's jagged tensors, against them."""

from typing import Any

import pytest
import torch

from graphs.base.errors import UgsepError
from graphs.trace.jagged.padding import pad
from graphs.trace.jagged.stand_ins import PaddedKeys, PaddedRows, PooledEmbeddings
from tests.graphs.torchrec_models import LENGTHS, jagged, needs_torchrec

MOST = {"history": 6, "country": 1, "tags": 3}


def both() -> tuple[Any, PaddedKeys]:
    keyed = jagged(LENGTHS, weighted=True)
    inputs = pad(keyed, MOST)
    return keyed, PaddedKeys({name: PaddedRows(name, inputs, name, name == "item") for name in LENGTHS})


@needs_torchrec
@pytest.mark.parametrize("length", [1, 4, 6, 9])
@pytest.mark.parametrize("feature", ["history", "item"])
def test_padded_dense_is_that_of_torchrec(feature: str, length: int) -> None:
    keyed, stand_in = both()
    for padding in (0.0, -1.0):
        wanted = keyed[feature].to_padded_dense(length, padding)
        assert torch.equal(stand_in[feature].to_padded_dense(length, padding), wanted)


@needs_torchrec
def test_lengths_and_single_values_are_those_of_torchrec() -> None:
    keyed, stand_in = both()
    for name in LENGTHS:
        assert torch.equal(stand_in[name].lengths(), keyed[name].lengths())
    assert torch.equal(stand_in["item"].values(), keyed["item"].values())
    assert torch.equal(stand_in["item"].weights(), keyed["item"].weights())


@needs_torchrec
def test_features_are_split_and_permuted_as_by_torchrec() -> None:
    keyed, stand_in = both()
    assert [part.keys() for part in stand_in.split([1, 3])] == [part.keys() for part in keyed.split([1, 3])]
    assert stand_in.permute([3, 0]).keys() == keyed.permute([3, 0]).keys()
    assert list(stand_in.to_dict()) == keyed.keys()
    assert stand_in.to(torch.device("cpu")) is stand_in


@needs_torchrec
def test_what_padding_changes_is_refused_by_name() -> None:
    keyed, stand_in = both()
    with pytest.raises(UgsepError, match=r"the model reads the jagged values of 'history'.*to_padded_dense"):
        stand_in["history"].values().sum()
    with pytest.raises(UgsepError, match=r"the model reads the jagged weights of 'history'"):
        torch.relu(stand_in["history"].weights())
    with pytest.raises(UgsepError, match=r"the model reads offsets\(\) of 'history'"):
        stand_in["history"].offsets()
    with pytest.raises(UgsepError, match=r"the model reads the jagged values of a KeyedJaggedTensor"):
        len(stand_in.values().shape)
    with pytest.raises(UgsepError, match=r"the model reads the jagged lengths of a KeyedJaggedTensor"):
        stand_in.lengths() + stand_in.lengths()
    with pytest.raises(UgsepError, match=r"the model reads offset_per_key\(\) of a KeyedJaggedTensor"):
        stand_in.offset_per_key()
    assert not hasattr(stand_in["history"], "offsets")
    assert stand_in.stride() == keyed.stride()


@needs_torchrec
def test_weights_are_padded_as_by_torchrec() -> None:
    keyed, stand_in = both()
    for name in ("history", "item"):
        wanted = keyed[name].to_padded_dense_weights(5, -1.0)
        assert torch.equal(stand_in[name].to_padded_dense_weights(5, -1.0), wanted)
    bare = PaddedRows("history", pad(jagged(LENGTHS), MOST), "history", False)
    assert bare.weights_or_none() is None
    assert bare.to_padded_dense_weights(5) is None
    with pytest.raises(UgsepError, match="reads the missing weights of 'history'"):
        bare.weights()


@needs_torchrec
def test_pooled_embeddings_are_a_keyed_tensor() -> None:
    from torchrec import KeyedTensor

    parts = {"a": torch.randn(3, 2), "b": torch.randn(3, 4)}
    real, stand_in = KeyedTensor.from_tensor_list(list(parts), list(parts.values())), PooledEmbeddings(parts)
    assert torch.equal(stand_in.values(), real.values())
    assert torch.equal(stand_in["b"], real["b"])
    assert stand_in.to_dict().keys() == real.to_dict().keys()
    for method in ("keys", "key_dim", "length_per_key", "device"):
        assert getattr(stand_in, method)() == getattr(real, method)(), method
    assert stand_in.offset_per_key() == list(real.offset_per_key())
