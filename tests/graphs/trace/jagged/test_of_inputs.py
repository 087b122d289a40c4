"""Models that are given the values and lengths of a KeyedJaggedTensor, and make it of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import split
from graphs.trace.jagged.flat import flat_model
from graphs.trace.jagged.of_inputs import made_of_inputs
from graphs.trace.jagged.options import JaggedOptions
from graphs.trace.jagged.padding import pad
from tests.graphs.torchrec_models import DENSE, LENGTHS, WIDTH, bags, jagged, needs_torchrec, spread

OPTIONS = JaggedOptions((("history", 9),), ("item",))
MOST = {"history": 9, "country": 1, "tags": 3}
FRESH = {"history": [9, 0, 4], "country": [0, 1, 1], "item": [1, 1, 1], "tags": [3, 0, 1]}


class Given(nn.Module):
    """Makes a KeyedJaggedTensor of its inputs, by lengths or by offsets."""

    def __init__(self, by: str, weighted: bool = False) -> None:
        super().__init__()
        self.by, self.bags = by, bags(weighted=weighted)
        self.head = nn.Linear(4 * WIDTH + DENSE, 1)

    def forward(self, dense: Tensor, values: Tensor, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        from torchrec import KeyedJaggedTensor

        make = KeyedJaggedTensor.from_lengths_sync if self.by == "lengths" else KeyedJaggedTensor.from_offsets_sync
        features = make(list(LENGTHS), values, rows, weights)
        y: Tensor = self.head(torch.cat([self.bags(features).values(), dense], 1))
        return y


def given(by: str, lengths: dict[str, list[int]], weighted: bool, seed: int) -> tuple[Any, dict[str, Tensor]]:
    keyed = jagged(lengths, weighted, seed)
    dense = torch.randn(keyed.stride(), DENSE, generator=torch.Generator().manual_seed(seed))
    found = {"dense": dense, "values": keyed.values(), "rows": getattr(keyed, by)()}
    return keyed, {**found, "weights": keyed.weights()} if weighted else found


@needs_torchrec
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("by", ["lengths", "offsets"])
def test_features_of_inputs_are_inputs(by: str, weighted: bool) -> None:
    module = spread(Given(by, weighted))
    flat = flat_model(module, given(by, LENGTHS, weighted, 0)[1], OPTIONS)
    assert set(flat.features) == {"values", *LENGTHS}
    keyed, fresh = given(by, FRESH, weighted, 5)
    padded = {"dense": fresh["dense"], **pad(keyed, MOST)}
    with torch.no_grad():
        wanted = module(**fresh)
        found = flat.module({n: padded[n] for n in flat.example["inputs"]})
    assert float(wanted.std()) > 1e-3, "scores must differ to mean something"
    # Rounding of sums of at most 9 vectors in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@needs_torchrec
@pytest.mark.parametrize("outside", [False, True])
def test_features_of_inputs_have_sides(outside: bool) -> None:
    options = replace(OPTIONS, outside=outside)
    flat = flat_model(spread(Given("lengths")), given("lengths", LENGTHS, False, 0)[1], options)
    parts = ("",) if outside else (".values", ".lengths")
    assert flat.features["tags"] == tuple(f"tags{part}" for part in parts)
    user, item = flat.inputs_of(["history", "country", "dense"]), flat.inputs_of(["item", "tags"])
    cut = split(flat.module, flat.example, user=user, item=item)
    assert prove_split(cut).max_rel <= 1e-5
    assert not any("countries" in n for n, _ in cut.item.module.named_parameters())


@needs_torchrec
def test_lengths_that_are_no_input_are_refused() -> None:
    class Longer(Given):
        def forward(self, dense: Tensor, values: Tensor, rows: Tensor, weights: Tensor | None = None) -> Tensor:
            return super().forward(dense, values, rows.clone(), weights)

    _, example = given("lengths", LENGTHS, False, 0)
    with pytest.raises(UgsepError, match="feature 'history' of a tensor in which it is not known where rows begin"):
        flat_model(spread(Longer("lengths")), example, JaggedOptions())
    _, example = given("lengths", LENGTHS, True, 0)

    class Heavier(Given):
        def forward(self, dense: Tensor, values: Tensor, rows: Tensor, weights: Tensor | None = None) -> Tensor:
            assert weights is not None
            return super().forward(dense, values, rows, weights * 2)

    with pytest.raises(UgsepError, match="of its input 'values' and weights that are no input; make the Keyed"):
        flat_model(spread(Heavier("lengths", weighted=True)), example, OPTIONS)


@needs_torchrec
def test_a_model_that_makes_no_jagged_tensors_is_told_apart() -> None:
    import torchrec.sparse.jagged_tensor  # noqa: F401  # without it none can be made

    module, x = nn.Linear(2, 3), torch.randn(4, 2)
    assert made_of_inputs(module, (x,), {}, {"input": x}) is None
    flat = flat_model(module, {"input": x}, JaggedOptions())
    assert flat.module is module
    bad = flat_model(module, {"input": torch.tensor(1.0)}, JaggedOptions())
    assert bad.module is module, "a trace says what is wrong with the example"
    with pytest.raises(UgsepError, match="no example input is a TorchRec KeyedJaggedTensor"):
        flat_model(module, {"input": torch.tensor(1.0)}, JaggedOptions(outside=True))
    # What fails is the model's own; a trace says so.
    assert made_of_inputs(module, (x[:, :1],), {}, {"input": x}) is None
