"""Jagged tensors that models make in ``forward``: against TorchRec on fresh rows, split by input, and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import split
from graphs.trace.jagged.flat import flat_model
from graphs.trace.jagged.options import JaggedOptions
from tests.graphs.torchrec_models import WIDTH, bags, jagged, needs_torchrec, spread

#: Rounding of sums of at most 5 vectors in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
KEYS = ["history", "country", "item", "tags"]
Make = Callable[[dict[str, Tensor]], Any]


def rows(count: int, seed: int) -> dict[str, Tensor]:
    """Return padded ids, zeros after each row's own, and lengths of 0 to all."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, most, below in (("history", 5, 40), ("tags", 3, 12)):
        found[f"{name}_length"] = torch.randint(0, most + 1, (count,), generator=generator)
        ids = torch.randint(1, below, (count, most), generator=generator)
        found[name] = ids * (torch.arange(most) < found[f"{name}_length"].unsqueeze(1))
    found["country"] = torch.randint(0, 7, (count,), generator=generator)
    found["item"] = torch.randint(0, 40, (count,), generator=generator)
    return found


def firsts(given: dict[str, Tensor]) -> list[Tensor]:
    return [given["history"][:, 0], given["country"], given["item"], given["tags"][:, 0]]


def rows_of(given: dict[str, Tensor]) -> int:
    return given["item"].shape[0]


def ones(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    lengths = torch.ones(4 * rows_of(given), dtype=torch.int32)
    return KeyedJaggedTensor.from_lengths_sync(keys=KEYS, values=torch.cat(firsts(given)) % 7, lengths=lengths)


def offsets(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    values = torch.stack(firsts(given), 1).T.flatten().int()
    return KeyedJaggedTensor.from_offsets_sync(KEYS, values, torch.arange(4 * rows_of(given) + 1))


def tiled(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    values = given["item"].repeat(4) % 7
    return KeyedJaggedTensor(KEYS, values, lengths=torch.ones_like(given["item"]).repeat(4))


def dense(given: dict[str, Tensor]) -> Any:
    from torchrec import JaggedTensor, KeyedJaggedTensor

    def one(name: str) -> Any:
        if f"{name}_length" in given:
            beyond = torch.arange(given[name].shape[1]) >= given[f"{name}_length"].unsqueeze(1)
            return JaggedTensor.from_dense_lengths(given[name].masked_fill(beyond, -1), given[f"{name}_length"])
        return JaggedTensor(given[name], lengths=torch.ones_like(given[name]))

    return KeyedJaggedTensor.from_jt_dict({name: one(name) for name in KEYS})


def masked(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    # The first id is hidden too, so that a row's ids are not its first ones.
    masks = {n: (given[n] > 0) & (torch.arange(given[n].shape[1]) > 0) for n in ("history", "tags")}
    values = [given[n][masks[n]] if n in masks else given[n] for n in KEYS]
    counts = [masks[n].sum(1) if n in masks else torch.ones_like(given[n]) for n in KEYS]
    return KeyedJaggedTensor(keys=KEYS, values=torch.cat(values), lengths=torch.cat(counts))


def fixed(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    values = [given[n].reshape(-1) for n in KEYS]
    n = rows_of(given)
    lengths = torch.cat([torch.full((n,), k) for k in (5, 1, 1, 3)])
    return KeyedJaggedTensor(
        KEYS, torch.cat(values), offsets=functional.pad(lengths.cumsum(0), (1, 0)), lengths=lengths
    )


def summed(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    made = dense(given)
    lengths = torch.cat([made[n].lengths() for n in KEYS])
    sums = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return KeyedJaggedTensor.from_offsets_sync(KEYS, torch.cat([made[n].values() for n in KEYS]), sums)


def joined(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    user, item = (dense({n: t for n, t in given.items()}).split([2, 2])[i] for i in (0, 1))
    return KeyedJaggedTensor.concat([user, item])


class Made(nn.Module):
    def __init__(self, make: Make, collection: nn.Module | None = None) -> None:
        super().__init__()
        self.make, self.bags = make, collection or bags()
        self.head = nn.Linear(4 * WIDTH, 1)

    def forward(self, **given: Tensor) -> Tensor:
        y: Tensor = self.head(self.bags(self.make(given)).values())[:, 0]
        return y


@needs_torchrec
@pytest.mark.parametrize("make", [ones, offsets, tiled, dense, masked, fixed, summed, joined])
def test_made_features_give_the_scores_of_jagged_ones(make: Make) -> None:
    module = spread(Made(make))
    flat = flat_model(module, rows(4, 0), JaggedOptions())
    fresh = rows(9, 1)
    with torch.no_grad():
        wanted, found = module(**fresh), flat.module({n: fresh[n] for n in flat.example["inputs"]})
    assert float(wanted.std()) > 1e-3, "scores must differ to mean something"
    torch.testing.assert_close(found, wanted, **CLOSE)


@needs_torchrec
@pytest.mark.parametrize("make", [ones, dense, masked])
def test_made_features_are_split_by_input(make: Make) -> None:
    flat = flat_model(spread(Made(make)), rows(4, 0), JaggedOptions())
    user = ("history", "history_length", "country")
    cut = split(flat.module, flat.example, user=user, item=[n for n in flat.example["inputs"] if n not in user])
    assert prove_split(cut).max_rel <= 1e-5
    assert not any("countries" in n for n, _ in cut.item.module.named_parameters())


def weighted(given: dict[str, Tensor]) -> Any:
    from torchrec import JaggedTensor, KeyedJaggedTensor

    def one(name: str) -> Any:
        if f"{name}_length" in given:
            shares = given[name].float() / 40 - 0.2
            return JaggedTensor.from_dense_lengths(given[name], given[f"{name}_length"], shares)
        return JaggedTensor(given[name], torch.tanh(given[name].float()), lengths=torch.ones_like(given[name]))

    return KeyedJaggedTensor.from_jt_dict({name: one(name) for name in KEYS})


@needs_torchrec
def test_weights_are_made_too() -> None:
    module = spread(Made(weighted, bags(weighted=True)))
    flat = flat_model(module, rows(4, 0), JaggedOptions())
    fresh = rows(9, 1)
    with torch.no_grad():
        torch.testing.assert_close(flat.module(fresh), module(**fresh), **CLOSE)


class Dense(nn.Module):
    """Reads jagged tensors of its own as dense ones."""

    def forward(self, history: Tensor, history_length: Tensor, item: Tensor) -> Tensor:
        from torchrec import JaggedTensor

        made = JaggedTensor.from_dense_lengths(history.float(), history_length)
        single = JaggedTensor(item, lengths=torch.ones_like(item))
        return made.to_padded_dense(7, -1.0).cumsum(1).sum(1) + single.to_padded_dense(2).sum(1) + made.lengths()


@needs_torchrec
def test_made_features_are_read_as_dense_ones() -> None:
    given = {n: t for n, t in rows(4, 0).items() if n in ("history", "history_length", "item")}
    flat = flat_model(Dense(), given, JaggedOptions())
    fresh = {n: t for n, t in rows(9, 1).items() if n in given}
    torch.testing.assert_close(flat.module(fresh), Dense()(**fresh), **CLOSE)
    cut = split(flat.module, flat.example, user=("history", "history_length"), item=("item",))
    assert cut.reusable_share > 0.5


class Joins(nn.Module):
    """Looks up a user's and an item's features in one jagged tensor."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by, self.bags = by, bags()

    def forward(self, user: Any, item: Any) -> Tensor:
        from torchrec import KeyedJaggedTensor

        if self.by == "concat":
            features = KeyedJaggedTensor.concat([user, item])
        else:
            features = KeyedJaggedTensor.from_jt_dict({**user.to_dict(), **item.to_dict()})
        found = self.bags(features=features)
        y: Tensor = (found["history"] * found["item"] + found["country"] * found["tags"]).sum(1)
        return y


@needs_torchrec
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("by", ["concat", "dict"])
def test_features_of_two_inputs_are_joined(by: str, outside: bool) -> None:
    user, item = jagged({"history": [2, 0, 4], "country": [1, 1, 1]}), jagged({"item": [1, 1, 1], "tags": [0, 2, 3]})
    options = JaggedOptions(single=("item",), outside=outside)
    flat = flat_model(spread(Joins(by)), {"user": user, "item": item}, options)
    parts = [""] if outside else [".values", ".lengths"]
    assert flat.features["user"] == tuple(f"{n}{part}" for n in ("history", "country") for part in parts)
    cut = split(flat.module, flat.example, user=flat.inputs_of(["user"]), item=flat.inputs_of(["item"]))
    assert prove_split(cut).max_rel <= 1e-5


def own_lengths(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    values = torch.cat([given[n].reshape(-1) for n in ("history", "country", "item", "tags")])
    n = rows_of(given)
    return KeyedJaggedTensor(KEYS, values, lengths=torch.tensor([5] * n + [1] * 2 * n + [3] * n))


def other_lengths(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    made = dense(given)
    values, lengths = made["history"].values(), made["history"].lengths().flip(0)
    return KeyedJaggedTensor.concat(
        [KeyedJaggedTensor(["history"], values, lengths=lengths), dense(given).split([1, 3])[1]]
    )


def few_tensors(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    ids, n = given["item"].repeat(4) % 7, rows_of(given)
    values = torch.cat([ids[: 2 * n], ids[2 * n :]])
    return KeyedJaggedTensor(KEYS, values, lengths=torch.ones_like(values))


def unknown_offsets(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    offsets = torch.linspace(0, 4 * rows_of(given), 4 * rows_of(given) + 1).long()
    return KeyedJaggedTensor(KEYS, torch.cat(firsts(given)) % 7, offsets=offsets)


def twice(given: dict[str, Tensor]) -> Any:
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor.concat([dense(given), dense(given).split([1, 3])[0]])


REFUSED = {
    own_lengths: "the model makes feature 'history' of a tensor in which it is not known where rows begin; use "
    "JaggedTensor.from_dense_lengths, torch.ones as the lengths of one id per row, or make the KeyedJaggedTensor an "
    "input of the model, where each feature has a side",
    other_lengths: "the model makes feature 'history' of the values of 'history' and other lengths; use those of "
    "these values",
    few_tensors: "the model makes a KeyedJaggedTensor of 4 features of 2 tensors; join one tensor per feature with "
    "torch.cat, or make the KeyedJaggedTensor an input of the model, where each feature has a side",
    unknown_offsets: "the model makes a KeyedJaggedTensor of offsets whose lengths are not known; give it lengths, "
    "or make the KeyedJaggedTensor an input of the model, where each feature has a side",
    twice: "the model makes a KeyedJaggedTensor with two features 'history'; give each its own name",
}


@needs_torchrec
@pytest.mark.parametrize("make", REFUSED)
def test_made_features_without_known_rows_are_refused(make: Make) -> None:
    with pytest.raises(UgsepError) as error:
        flat_model(spread(Made(make)), rows(4, 0), JaggedOptions())
    assert str(error.value) == REFUSED[make]


@needs_torchrec
def test_made_features_cannot_be_looked_up_outside() -> None:
    keyed = jagged({"history": [1, 1, 1, 1]})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made = Made(ones)

        def forward(self, features: Any, **given: Tensor) -> Tensor:
            y: Tensor = self.made(**given) + features["history"].to_padded_dense(3).sum(1)
            return y

    example = {"features": keyed, **rows(4, 0)}
    with pytest.raises(
        UgsepError, match=r"submodule 'made\.bags' looks up 'history', which the model makes of tensors"
    ):
        flat_model(spread(Both()), example, JaggedOptions(outside=True))


@needs_torchrec
def test_ids_behind_a_mask_have_no_fixed_places() -> None:
    class Gaps(nn.Module):
        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            from torchrec import JaggedTensor

            mask = history % 2 == 0
            made = JaggedTensor(history[mask], lengths=mask.sum(1))
            return made.to_padded_dense(5).sum(1) * item

    example = {n: t for n, t in rows(4, 0).items() if n in ("history", "item")}
    with pytest.raises(UgsepError, match=r"a mask that may have gaps; make it with JaggedTensor\.from_dense"):
        flat_model(Gaps(), example, JaggedOptions())
