"""Inputs may have any name: keywords, builtins, names that generated code reads, names that look alike."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphs.split.proof import prove_split
from graphs.split.split import split
from graphs.trace.trace import identifier, trace
from tests.suites import slow_but

N, D = 3, 4
# Generated code reads `device` to create a tensor on a device; `self`, `torch`, `inf` likewise.
NAMES = [
    *("device", "self", "torch", "inf", "nan", "lambda", "in", "id", "type", "input", "getattr", "slice", "args"),
    *("kwargs", "rows", "sym_size_int", "operator", "user id", "1st", "naïve", "a/b", "add", "features"),
]


class Dictionary(nn.Module):
    """Reads its inputs from a dict; creates tensors on a device, slices and compares with infinity."""

    def __init__(self, user: str, item: str) -> None:
        super().__init__()
        self.user, self.item = user, item
        self.tower = nn.Linear(D, D)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        u, i = self.tower(features[self.user]).relu(), features[self.item]
        position = torch.arange(D, device=u.device)
        u = u.masked_fill(position > 2, float("-inf")).softmax(-1)
        return {"score": (u[:, 1:] * i[:, 1:]).sum(-1) + torch.zeros(u.shape[0], device=i.device)}


def rows(*names: str) -> dict[str, Any]:
    return {name: torch.randn(N, D) for name in names}


@pytest.mark.parametrize("name", slow_but({"self", "nan", "lambda", "args", "a/b", "1st"}, NAMES))
def test_an_input_of_any_name_on_either_side(name: str) -> None:
    for user, item in ((name, "other"), ("other", name)):
        torch.manual_seed(0)
        split_model = split(Dictionary(user, item), {"features": rows(user, item)}, user=[user], item=[item])
        assert prove_split(split_model).max_rel <= 1e-6
        assert split_model.user.inputs == (user,)
        assert item in split_model.item.inputs


def test_arguments_named_like_what_generated_code_reads() -> None:
    class Arguments(nn.Module):
        def forward(self, device: Tensor, torch_: Tensor, inf: Tensor) -> Tensor:
            offsets = torch.arange(D, device=device.device)
            return (device.exp() * inf * (torch_ + offsets).masked_fill(inf > 9, float("nan"))).sum(-1)

    split_model = split(Arguments(), rows("device", "torch_", "inf"), user=["device"], item=["torch_", "inf"])
    assert prove_split(split_model).max_rel <= 1e-6
    assert split_model.user.inputs == ("device",)


def test_names_that_become_the_same_identifier() -> None:
    class Alike(nn.Module):
        def forward(self, x: Mapping[str, Tensor]) -> Tensor:
            return (x["a.b"].exp() * x["a_b"].cos() * x["a b"] * x["input_class"] * x["class"]).sum(-1)

    example = {"x": rows("a.b", "a_b", "a b", "input_class", "class")}
    split_model = split(Alike(), example, user=["a.b", "a_b"], item=["a b", "input_class", "class"])
    assert prove_split(split_model).max_rel <= 1e-6


def test_identifiers_shadow_nothing() -> None:
    for name in ("device", "self", "id", "class", "1", "a b"):
        assert identifier(name).isidentifier()
        assert identifier(name) != name
        assert identifier(identifier(name)) == identifier(name)
    assert identifier("user_id") == "user_id"


class Encoded(nn.Module):
    """A history encoded by a TransformerEncoder with a padding mask, whose fast path of inference differs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.history, self.item = nn.Embedding(50, 8), nn.Embedding(40, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, history: Tensor, mask: Tensor, item: Tensor) -> Tensor:
        encoded = self.encoder(self.history(history), src_key_padding_mask=~mask)
        return (encoded.mean(1) * self.item(item)).sum(1)


def test_a_transformer_encoder_computes_what_it_was_trained_with_for_every_mask() -> None:
    rows = {"history": torch.randint(0, 50, (7, 6)), "mask": torch.rand(7, 6) > 0.3, "item": torch.arange(7)}
    made = split(Encoded().eval(), rows, user=["history", "mask"], item=["item"])
    assert prove_split(made).max_rel < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_changes_nothing_leaves_no_node() -> None:
    class Unchanged(nn.Module):
        def forward(self, u: Tensor, i: Tensor) -> Tensor:
            return (i.squeeze(1).type_as(u) * u.to(torch.float64).type_as(i)).sum(1)

    graph = trace(Unchanged(), (torch.randn(3, 4), torch.randn(3, 4))).module.graph
    made = [node.target for node in graph.nodes if node.op == "call_function"]
    aten = torch.ops.aten
    # To float64 and back is left.
    assert made == [aten.to.dtype, aten._to_copy.default, aten.mul.Tensor, aten.sum.dim_IntList]


def test_a_constant_expanded_as_features_are() -> None:
    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(4))

        def forward(self, u: Tensor, i: Tensor) -> Tensor:
            return ((u + self.shift.expand_as(u)) * i).sum(1)

    found = split(Expanded(), (torch.randn(3, 4), torch.randn(3, 4)), user=["u"], item=["i"])
    assert prove_split(found).max_rel <= 1e-6
    assert found.state_bytes == 4 * 4  # the sum, not the feature
    assert len(found.user.module.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)) == 1
