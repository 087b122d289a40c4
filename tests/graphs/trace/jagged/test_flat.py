"""TorchRec's models as models of plain tensors: against the original on jagged features, split, and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import split
from graphs.trace.jagged.flat import FlatModel, flat_model
from graphs.trace.jagged.options import JaggedOptions
from graphs.trace.jagged.padding import pad
from tests.graphs.torchrec_models import ITEM, MODELS, USER, bags, dlrm, jagged, needs_torchrec, spread, towers

OPTIONS = {
    "padded": JaggedOptions((("history", 9),), ("item",)),
    "outside": JaggedOptions((("history", 9),), ("item",), outside=True),
}
#: Rounding of sums of at most 9 vectors in another order, and of layers of at most 40 products after them.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def made(name: str, options: str) -> tuple[nn.Module, dict[str, Any], FlatModel]:
    torch.manual_seed(0)
    module, example = MODELS[name]()
    return module, example, flat_model(module, example, OPTIONS[options])


@needs_torchrec
@pytest.mark.parametrize("name", [n for n in MODELS if n != "towers"])
def test_padded_features_give_the_scores_of_jagged_ones(name: str) -> None:
    module, example, flat = made(name, "padded")
    lengths = {"history": [9, 0, 4], "country": [0, 1, 1], "item": [1, 1, 1], "tags": [3, 0, 1]}
    (argument,) = (n for n, value in example.items() if not isinstance(value, Tensor))
    keys = example[argument].keys()
    keyed = jagged({key: lengths[key] for key in keys}, weighted=name == "weighted", seed=5)
    others = {n: v[:3] for n, v in example.items() if n != argument}
    inputs = {**others, **pad(keyed, {"history": 9, "country": 1, "tags": 3})}
    with torch.no_grad():
        wanted = module(**others, **{argument: keyed})
        found = flat.module({n: inputs[n] for n in flat.example["inputs"]})
    assert float(wanted.std()) > 1e-3, "scores must differ to mean something"
    torch.testing.assert_close(found, wanted, **CLOSE)


@needs_torchrec
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [n for n in MODELS if n != "towers"])
def test_models_split_by_feature(name: str, options: str) -> None:
    module, example, flat = made(name, options)
    user = flat.inputs_of(n for n in (*USER, "dense_features") if n in flat.features or n in example)
    item = flat.inputs_of(n for n in ITEM if n in flat.features)
    cut = split(flat.module, flat.example, user=user, item=item)
    proof = prove_split(cut)
    assert proof.max_rel <= 1e-5
    assert proof.row_max_abs <= 1e-6
    # Of the user's tables and bottom layers nothing is left in the item graph.
    left = {n for n, _ in cut.item.module.named_parameters()}
    assert not any("countries" in n or "dense_arch" in n for n in left)
    with torch.no_grad():
        whole = module(**example)
    whole_of_split = cut.full(dict(zip(cut.traced.inputs, flat.example["inputs"].values(), strict=True)))
    torch.testing.assert_close(next(iter(whole_of_split.values())), whole, **CLOSE)


@needs_torchrec
def test_only_what_is_read_becomes_an_input() -> None:
    _, _, flat = made("sequences", "padded")
    assert {n: tuple(v.shape) for n, v in flat.example["inputs"].items()} == {
        "history.values": (4, 9),
        "history.lengths": (4,),
        "item": (4,),
    }
    assert flat.features["history"] == ("history.values", "history.lengths")
    _, _, flat = made("dlrm", "padded")  # its collection ignores weights, which the example may have
    module, example = MODELS["dlrm"]()
    example["sparse_features"] = MODELS["weighted"]()[1]["sparse_features"]
    assert flat_model(module, example, OPTIONS["padded"]).features == flat.features


@needs_torchrec
def test_embeddings_looked_up_outside_are_inputs() -> None:
    _, _, flat = made("dlrm", "outside")
    shapes = {n: tuple(v.shape) for n, v in flat.example["inputs"].items()}
    assert shapes == {"dense_features": (4, 5), **{n: (4, 8) for n in (*USER, *ITEM)}}
    assert not any("embedding" in n for n, _ in flat.module.named_parameters())
    _, _, flat = made("sequences", "outside")
    shapes = {n: tuple(v.shape) for n, v in flat.example["inputs"].items()}
    assert shapes == {"history.lengths": (4,), "history.vectors": (4, 9, 8), "item.vectors": (4, 8)}
    _, _, flat = made("regroups", "outside")  # two collections look up the same features
    assert flat.features["history"] == ("first.history", "second.history")


@needs_torchrec
@pytest.mark.parametrize("outside", [False, True])
def test_arguments_name_their_features(outside: bool) -> None:
    module, example = towers()
    flat = flat_model(module, example, JaggedOptions(outside=outside))
    parts = [""] if outside else [".values", ".lengths"]
    assert flat.features["user"] == tuple(f"user.country{part}" for part in parts)
    cut = split(flat.module, flat.example, user=flat.inputs_of(["user"]), item=flat.inputs_of(["item"]))
    assert cut.reusable_share > 0.5
    assert prove_split(cut).max_rel <= 1e-5


@needs_torchrec
def test_parameters_keep_their_names_and_memory() -> None:
    module, example = dlrm()
    flat = flat_model(module, example, JaggedOptions())
    assert {n: p.data_ptr() for n, p in flat.module.state_dict().items()} == {
        n: p.data_ptr() for n, p in module.state_dict().items()
    }
    with torch.no_grad():
        assert module(**example).shape == (4, 1), "the model itself still takes jagged features"


def test_a_model_without_jagged_features_stays_as_it_is() -> None:
    module, example = nn.Linear(2, 2), {"input": torch.zeros(3, 2)}
    flat = flat_model(module, example, JaggedOptions())
    assert flat.module is module
    assert flat.example is example
    assert flat.inputs_of(["input", "input"]) == ("input",)


@needs_torchrec
@pytest.mark.parametrize("data_type", ["FP16", "FP32"])
def test_tables_of_either_precision(data_type: str) -> None:
    from torchrec.modules.embedding_configs import DataType

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = bags(data_type=DataType[data_type])

        def forward(self, features: Any) -> Tensor:
            y: Tensor = self.bags(features).values().sum(1)
            return y

    flat_model(spread(Sum()), {"features": MODELS["regroups"]()[1]["features"]}, JaggedOptions())


class Reads(nn.Module):
    """Pools a feature, and reads jagged features in a way of its own."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.bags, self.read = bags(), read

    def forward(self, features: Any) -> Tensor:
        y: Tensor = self.bags(features)["item"].sum(1) + self.read(self, features)
        return y


REFUSED = {
    "jagged values": (
        lambda _, features: features["history"].values().sum().float(),
        "the model reads the jagged values of 'history', whose rows have no fixed places there; read "
        "to_padded_dense(K), or declare features of one id per row with --single",
    ),
    "offsets": (
        lambda _, features: features.offsets().sum().float(),
        "the model reads the jagged offsets of a KeyedJaggedTensor, whose rows have no fixed places there; read "
        "to_padded_dense(K), or declare features of one id per row with --single",
    ),
    "a length of the batch": (
        lambda _, features: features["history"].to_padded_dense().float().shape[1],
        "padded features change the model's scores on random ids; read jagged features only through "
        "EmbeddingBagCollection, EmbeddingCollection and to_padded_dense(K), which ignore the padding",
    ),
}


@needs_torchrec
@pytest.mark.parametrize("case", REFUSED)
def test_what_padding_does_not_allow_is_refused(case: str) -> None:
    read, message = REFUSED[case]
    module = spread(Reads(read))
    with pytest.raises(UgsepError) as error:
        flat_model(module, {"features": MODELS["regroups"]()[1]["features"]}, OPTIONS["padded"])
    assert str(error.value) == message


@needs_torchrec
def test_ids_that_are_read_beside_an_outside_lookup_are_refused() -> None:
    module = spread(Reads(lambda _, features: features["item"].values().float()))
    example = {"features": MODELS["regroups"]()[1]["features"]}
    flat_model(module, example, OPTIONS["padded"])
    with pytest.raises(UgsepError, match="reads the ids of 'item', whose embeddings are looked up outside"):
        flat_model(module, example, OPTIONS["outside"])


@needs_torchrec
def test_a_collection_called_twice_cannot_be_looked_up_outside() -> None:
    module = spread(Reads(lambda model, features: model.bags(features)["tags"].sum(1)))
    example = {"features": MODELS["regroups"]()[1]["features"]}
    flat_model(module, example, OPTIONS["padded"])
    with pytest.raises(UgsepError, match="submodule 'bags' is called twice"):
        flat_model(module, example, OPTIONS["outside"])


@needs_torchrec
def test_a_weighted_collection_without_weights_is_refused() -> None:
    module, example = MODELS["weighted"]()
    bare = {**example, "sparse_features": dlrm()[1]["sparse_features"]}
    with pytest.raises(
        UgsepError, match="is weighted, but 'history' has no weights; give the KeyedJaggedTensor weights"
    ):
        flat_model(module, bare, OPTIONS["padded"])


@needs_torchrec
def test_jagged_results_are_refused() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = bags()

        def forward(self, features: Any) -> Any:
            return self.bags(features)

    with pytest.raises(UgsepError, match="the model returns a jagged or keyed tensor; return tensors only"):
        flat_model(spread(Returns()), {"features": MODELS["regroups"]()[1]["features"]}, JaggedOptions())


@needs_torchrec
def test_an_input_that_has_the_name_of_a_features_part_stays() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = bags()

        def forward(self, features: Any, others: dict[str, Tensor]) -> Tensor:
            y: Tensor = self.bags(features).values().sum(1) + others["history.lengths"]
            return y

    keyed = MODELS["regroups"]()[1]["features"]
    example = {"features": keyed, "others": {"history.lengths": torch.randn(4)}}
    flat = flat_model(spread(Named()), example, OPTIONS["padded"])
    assert flat.features["history"] == ("features.history.values", "features.history.lengths")
    assert "history.lengths" in flat.example["inputs"]
