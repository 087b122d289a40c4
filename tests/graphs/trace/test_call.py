"""Calls of every form, and wrapped modules, split like the plain module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import split

ROWS = {"user": torch.randn(7, 3), "item": torch.randn(7, 5)}


class Dot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u, self.i = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.u(user) * self.i(item)).sum(1)


class Positional(Dot):
    def forward(self, *given: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(*given)


class Keywords(Dot):
    def forward(self, **given: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(given["user"], given["item"])


class Optional(Dot):
    def forward(self, user: Tensor, item: Tensor, bias: Tensor | None = None, scale: float = 2.0) -> Tensor:
        scores = super().forward(user, item) * scale
        return scores if bias is None else scores + bias[:, 0]


CALLS: dict[str, tuple[type[Dot], Any, tuple[str, str]]] = {
    "positional": (Dot, tuple(ROWS.values()), ("user", "item")),
    "*args": (Positional, tuple(ROWS.values()), ("arg0", "arg1")),
    "**kwargs": (Keywords, ROWS, ("user", "item")),
    "None": (Optional, ROWS | {"bias": None}, ("user", "item")),
    "a number": (Optional, ROWS | {"scale": 3.0}, ("user", "item")),
    "None and a number by position": (Optional, (*ROWS.values(), None, 3), ("user", "item")),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_form_of_call_splits(name: str) -> None:
    kind, example, (user, item) = CALLS[name]
    module = kind().eval()
    made = split(module, example, user=[user], item=[item])
    prove_split(made)
    assert made.traced.inputs == (user, item)
    assert {n for n, _ in made.full.module.named_parameters()} == {n for n, _ in module.named_parameters()}
    given = (
        example if isinstance(example, dict) else dict(zip(("user", "item", "bias", "scale"), example, strict=False))
    )
    wanted = module(*example) if isinstance(example, tuple) else module(**given)
    (got,) = made.full({user: ROWS["user"], item: ROWS["item"]}).values()
    torch.testing.assert_close(got, wanted)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": torch.compile,  # type: ignore[dict-item]  # overloaded
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "two wrappers": lambda m: nn.DataParallel(torch.compile(m)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_taken_off(name: str) -> None:
    module = Dot().eval()
    made = split(WRAPPERS[name](module), ROWS, user=["user"], item=["item"])
    prove_split(made)
    assert {n for n, _ in made.full.module.named_parameters()} == {n for n, _ in module.named_parameters()}


@pytest.mark.parametrize("script", [lambda m: torch.jit.trace(m, tuple(ROWS.values())), torch.jit.script])
def test_torchscript_is_refused(script: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UgsepError, match=r"is a TorchScript module, .*; pass the original nn.Module"):
        split(script(Dot().eval()), ROWS, user=["user"], item=["item"])


def test_splitting_leaves_the_module_as_it_was() -> None:
    module = Optional().eval()
    before = {n: p.data_ptr() for n, p in module.named_parameters()}
    split(module, ROWS | {"bias": None}, user=["user"], item=["item"])
    assert "forward" not in vars(module)
    assert {n: p.data_ptr() for n, p in module.named_parameters()} == before
