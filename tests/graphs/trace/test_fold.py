"""Expressions of parameters by operations that no runtime has are computed once, when the model is traced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import Split, split
from graphs.trace.trace import trace

EXAMPLE = (torch.randn(7, 3), torch.randn(7, 4))


class Mixed(nn.Module):
    """A user layer, and an item layer whose output is multiplied by a function of a square parameter."""

    def __init__(self, function: Callable[[Tensor], Tensor], item: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.user, self.item = nn.Linear(3, 5), nn.Linear(4, 5) if item is None else item
        self.square = nn.Parameter(torch.randn(5, 5) + 4 * torch.eye(5))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user) * (self.item(item) @ self.function(self.square))).sum(1)


def ops(made: Split) -> set[str]:
    graphs = made.full.module.graph, made.item.module.graph
    return {str(n.target) for graph in graphs for n in graph.nodes if n.op == "call_function"}


@pytest.mark.parametrize(
    "function",
    [
        lambda w: torch.linalg.inv(w + 3 * torch.eye(5)),
        torch.inverse,
        torch.matrix_exp,
        lambda w: torch.linalg.svd(w)[0],
        lambda w: torch.linalg.solve(w, torch.eye(5)),
    ],
    ids=["inv", "inverse", "matrix_exp", "svd", "solve"],
)
def test_a_function_of_a_parameter_is_a_constant_of_the_graph(function: Callable[[Tensor], Tensor]) -> None:
    made = split(Mixed(function).eval(), EXAMPLE, user=["user"], item=["item"])
    assert not any("linalg" in op or "matrix_exp" in op for op in ops(made))
    prove_split(made)


@pytest.mark.parametrize("kind", ["matrix_exp", "cayley", "householder"])
def test_an_orthogonal_layer_is_a_weight_under_its_own_name(kind: str) -> None:
    torch.manual_seed(0)
    layer = parametrizations.orthogonal(nn.Linear(4, 5), orthogonal_map=kind)
    made = split(Mixed(lambda w: w, layer).eval(), EXAMPLE, user=["user"], item=["item"])
    names = [n.target for n in made.item.module.graph.nodes if n.op == "get_attr"]
    assert "item_weight" in names
    assert not any("parametrizations" in str(n) for n in names)
    prove_split(made)


def test_other_expressions_of_parameters_stay_in_the_graph() -> None:
    made = split(Mixed(lambda w: torch.tanh(w * 2)).eval(), EXAMPLE, user=["user"], item=["item"])
    assert "aten.tanh.default" in ops(made)
    assert "square" in [n.target for n in made.item.module.graph.nodes if n.op == "get_attr"]


def test_random_constants_are_not_folded_but_refused() -> None:
    with pytest.raises(UgsepError, match=r"draws random numbers.*call \.eval\(\)"):
        split(Mixed(lambda w: torch.linalg.inv(w + torch.rand(5))).eval(), EXAMPLE, user=["user"], item=["item"])


def test_parameters_without_values_stay_expressions() -> None:
    module = Mixed(torch.matrix_exp).eval().to("meta")
    traced = trace(module, tuple(t.to("meta") for t in EXAMPLE))
    assert "aten.linalg_matrix_exp.default" in [str(n.target) for n in traced.module.graph.nodes]
