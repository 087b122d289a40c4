"""Collections found and replaced in a copy of the model."""

import pytest
import torch
from torch import nn

from graphs.base.errors import UgsepError
from graphs.trace.jagged.lookups import PaddedBags
from graphs.trace.jagged.parts import collections_of, is_keyed_jagged, with_padded_parts
from tests.graphs.torchrec_models import LENGTHS, bags, dlrm, jagged, needs_torchrec


@needs_torchrec
def test_the_copy_shares_everything_but_the_collections() -> None:
    module, _ = dlrm()
    copy = with_padded_parts(module, None)
    assert copy.over_arch is module.over_arch
    assert {n: p.data_ptr() for n, p in copy.named_parameters()} == {
        n: p.data_ptr() for n, p in module.named_parameters()
    }
    assert list(collections_of(copy)) == ["sparse_arch.embedding_bag_collection"]
    assert not collections_of(module)


@needs_torchrec
def test_a_shared_collection_stays_shared() -> None:
    collection = bags()
    copy = with_padded_parts(nn.ModuleList([collection, nn.Sequential(collection)]), None)
    assert isinstance(copy[0], PaddedBags)
    assert copy[0] is copy[1][0]


@needs_torchrec
def test_without_the_tables_their_parameters_are_gone() -> None:
    copy = with_padded_parts(dlrm()[0], {})
    assert not any("embedding_bags" in name for name, _ in copy.named_parameters())


@needs_torchrec
def test_a_quantized_collection_is_refused() -> None:
    from torchrec.quant.embedding_modules import EmbeddingBagCollection

    collection = bags()
    quantized = EmbeddingBagCollection(
        tables=collection.embedding_bag_configs(), is_weighted=False, device=torch.device("cpu")
    )
    with pytest.raises(UgsepError, match=r"submodule '0' is a EmbeddingBagCollection of torchrec\.quant.*before"):
        with_padded_parts(nn.Sequential(quantized), None)


@needs_torchrec
def test_only_keyed_jagged_tensors_are_recognized() -> None:
    assert is_keyed_jagged(jagged(LENGTHS))
    assert not is_keyed_jagged(jagged(LENGTHS)["item"])
    assert not is_keyed_jagged(torch.zeros(2))
