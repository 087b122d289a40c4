"""What ONNX cannot express is refused in one printable line that names op, module and source line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import UgsepError
from graphs.split.split import split


class Tower(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense, self.function = nn.Linear(4, 5), function

    def forward(self, item: Tensor) -> Tensor:
        return self.function(self.dense(item))


class Scored(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.user, self.tower = nn.Linear(3, 5), Tower(function)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user) * self.tower(item)).sum(1)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: torch.lgamma(x.abs() + 1), "lgamma"),
        (torch.special.i0, "bessel_i0"),
        (lambda x: torch.erfinv(torch.tanh(x) / 2), "erf_inv"),
    ],
    ids=["lgamma", "i0", "erfinv"],
)
def test_an_op_without_a_form_in_onnx_is_named(function: Callable[[Tensor], Tensor], op: str, tmp_path: Path) -> None:
    example = {"user": torch.randn(7, 3), "item": torch.randn(7, 4)}
    made = split(Scored(function).eval(), example, user=["user"], item=["item"])
    rows = dict.fromkeys(example, "candidates")
    with pytest.raises(UgsepError, match=rf"{op}\S* in tower \(test_exporter_errors\.py:\d+\) has no form") as caught:
        export_subgraph(made.full, example, rows, tmp_path / "full.onnx", Stamp("scored", "full", "fp32", ()))
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 300
    assert not (tmp_path / "full.onnx").exists()
