"""An op without a kernel for its type is refused at the export, with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.build.graph_exports import export_graphs
from engines.build.source_model import of_module
from graphs.base.errors import UgsepError
from graphs.split.split import split


class Wide(nn.Module):
    """Towers in float64 with an activation."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation, self.user, self.item = activation, nn.Linear(3, 5), nn.Linear(4, 5)
        self.double()

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user.double()) * self.activation(self.item(item.double()))).sum(1)


def export(activation: Callable[[Tensor], Tensor], folder: Path) -> None:
    module, example = Wide(activation).eval(), (torch.randn(7, 3), torch.randn(7, 4))
    made = split(module, example, user=["user"], item=["item"])
    export_graphs("wide", of_module(module, example, ("user",), ("item",)), made, folder)


def test_an_op_without_a_kernel_for_float64_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UgsepError, match=r"no Erf for float64, which gelu\.default in the model \(test_kernels"
    ) as caught:
        export(F.gelu, tmp_path)
    assert str(caught.value).isprintable()


def test_float64_with_kernels_is_exported(tmp_path: Path) -> None:
    export(torch.relu, tmp_path)
    assert {p.name for p in tmp_path.glob("*.onnx")} == {"full.onnx", "user.onnx", "item.onnx"}
