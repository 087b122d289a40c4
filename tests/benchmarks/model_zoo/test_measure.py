"""The test bed on tiny models of its own: one that splits, and one for every way to stop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.model_zoo.measure import TOLERANCE32, TOLERANCE64, measure
from benchmarks.model_zoo.packages.inputs import Features, ZooModel, ids, spread


class Tiny(nn.Module):
    """Two lookups, a hidden layer over both, a logit."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.users = nn.Embedding(1000, width)
        self.items = nn.Embedding(1000, width)
        self.hidden = nn.Linear(2 * width, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        both = torch.cat([self.users(features["user_0"]), self.items(features["item_0"])], 1)
        return self.out(self.hidden(both).relu())


class Mixing(Tiny):
    """Centers scores over the batch."""

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        y = super().forward(features)
        return y - y.mean(0)


class Constant(Tiny):
    """Scores that differ by a millionth of their size."""

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return super().forward(features).tanh() * 1e-6 + 1


class SinglePrecision(Tiny):
    """Computes its first layer in float32, whatever its weights are."""

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        both = torch.cat([self.users(features["user_0"]), self.items(features["item_0"])], 1).float()
        return self.out(self.hidden(both).relu())


def zoo(model: nn.Module) -> ZooModel:
    torch.manual_seed(0)
    return ZooModel(Features(spread(model)).eval(), {"features": ids(("user_0", "item_0"))}, ("user_0",), ("item_0",))


def test_a_model_is_split_proven_exported_and_timed() -> None:
    found = measure("ours", "tiny", zoo(Tiny()), rounds=2)
    assert found.outcome == "split", found.reason
    # Of 2 * 128 * 64 + 2 * 64 FLOPs and some additions, the user's columns of the hidden layer: 2 * 64 * 64.
    assert 0.4 < found.share < 0.5
    assert found.hoisted == 1
    assert found.state_bytes == 64 * 4
    assert found.float64 is not None
    assert found.float64 <= TOLERANCE64
    assert found.onnx is not None
    assert found.onnx <= TOLERANCE32
    assert min(found.whole_ms, found.user_ms, found.item_ms) > 0
    assert found.speedup == pytest.approx(found.whole_ms / (found.user_ms + found.item_ms))
    assert (found.user, found.item, found.rounds) == (("user_0",), ("item_0",), 2)


def test_a_refusal_is_a_result_with_its_reason() -> None:
    found = measure("ours", "mixing", zoo(Mixing()), rounds=2)
    assert found.outcome == "refused"
    assert "rows depend on each other" in found.reason
    assert found.whole_ms == 0


def test_constant_scores_prove_nothing() -> None:
    found = measure("ours", "constant", zoo(Constant()), rounds=2)
    assert found.outcome == "not exported"
    assert "hardly differs between candidates" in found.reason


def test_a_model_that_cannot_compute_in_float64_is_measured_without() -> None:
    found = measure("ours", "single", zoo(SinglePrecision()), rounds=2)
    assert found.outcome == "split", found.reason
    assert found.float64 is None
    assert found.float32 is not None
