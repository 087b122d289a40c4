"""Calls of every form, and wrapped modules, split like the plain module."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass
class Scores:
    click: Tensor
    buy: Tensor
    loss: Tensor | None = None


class Returns(Dot):
    def forward(self, user: Tensor, item: Tensor) -> Any:  # type: ignore[override]
        score = super().forward(user, item)
        return {"scores": Scores(score, 2 * score), "more": [score]}


def test_dataclasses_in_the_result_name_their_outputs() -> None:
    made = split(Returns().eval(), ROWS, user=["user"], item=["item"])
    prove_split(made)
    assert set(made.full.outputs) == {"output.scores.click", "output.scores.buy", "output.more.0"}


def test_a_graph_module_splits() -> None:
    prove_split(split(torch.fx.symbolic_trace(Dot().eval()), ROWS, user=["user"], item=["item"]))


class Inner(Dot):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.i = part  # type: ignore[assignment]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (lambda: torch.jit.script(Dot()), "TorchScript module, .* pass the original nn.Module"),
    "traced": (lambda: torch.jit.trace(Dot(), tuple(ROWS.values())), "TorchScript module, .* pass the original"),
    "scripted part": (lambda: Inner(torch.jit.script(nn.Linear(5, 4))), "submodule 'i' is TorchScript"),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(Dot(), {nn.Linear}),
        "submodule 'u' is quantized by PyTorch .*; pass the float model",
    ),
    "lazy": (
        lambda: Inner(nn.LazyLinear(4)),
        "parameter 'i.weight' of a lazy module has no shape yet; call the model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_cannot_be_traced_are_refused_in_one_line(name: str) -> None:
    factory, message = REFUSED[name]
    with pytest.raises(UgsepError, match=message) as caught:
        split(factory().eval(), ROWS, user=["user"], item=["item"])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("result", "kind"),
    [(lambda s: (s, None), "None"), (lambda s: (s, 1.5), "a float"), (lambda s: (s, "x"), "a str")],
)
def test_outputs_that_are_no_tensors_are_named(result: Callable[[Tensor], Any], kind: str) -> None:
    class Pair(Dot):
        def forward(self, user: Tensor, item: Tensor) -> Any:  # type: ignore[override]
            return result(super().forward(user, item))

    with pytest.raises(UgsepError, match=f"returns {kind}, which is not a tensor"):
        split(Pair().eval(), ROWS, user=["user"], item=["item"])


def test_a_long_or_coloured_message_of_a_model_stays_one_line() -> None:
    class Raises(Dot):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            raise ValueError("\x1b[31mred\x1b[0m " + "words " * 500 + "\nand more")

    with pytest.raises(UgsepError, match="red words") as caught:
        split(Raises().eval(), ROWS, user=["user"], item=["item"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


class DetachedData(Dot):
    """Reads ``.data`` of an intermediate result and of a parameter."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        found = self.u(user).data * self.i(item)
        found.data.add_(nn.functional.linear(item, self.i.weight.data))
        return found.sum(1)


def test_data_of_a_tensor_is_traced() -> None:
    torch.manual_seed(0)
    model = DetachedData().double().eval()
    found = split(model, {n: v.double() for n, v in ROWS.items()}, user=["user"], item=["item"])
    assert [s.row_shape for s in found.state] == [(4,)]
    # Sums of four products of size about 1, against the model as given.
    assert prove_split(found, candidates=(1, 5)).max_rel <= 1e-14


class AssignedData(Dot):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        found = self.u(user)
        found.data = found.data * 2
        return (found * self.i(item)).sum(1)


def test_an_assignment_to_data_is_refused() -> None:
    with pytest.raises(
        UgsepError, match=r"assigns to the \.data of a tensor, which a trace does not see; compute a "
    ):
        split(AssignedData().eval(), ROWS, user=["user"], item=["item"])
