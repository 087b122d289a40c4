"""Float divisions, remainders and sums in logarithms, exported, over all sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.split.split import split
from tests.suites import slow_but


class Applied(nn.Module):
    """A function of two features of an item beside a user feature."""

    def __init__(self, part: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part

    def forward(self, user: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([user.tanh(), self.part(left, right)], -1)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "remainder of seconds": lambda a, b: a % 86400,
    "remainder": lambda a, b: a % b,
    "remainder of a number": lambda a, b: 1e9 % b,
    "remainder of integers": lambda a, b: a.clamp(-1e9, 1e9).long() % 0.3,
    "bucket": lambda a, b: a // 0.1,
    "floor_divide": lambda a, b: a // b,
    "div floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div floor by a number": lambda a, b: torch.div(a, 7, rounding_mode="floor"),
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "logsigmoid": lambda a, b: F.logsigmoid(a),
}


@pytest.mark.parametrize("name", slow_but(["remainder of seconds", "bucket", "logaddexp", "logsigmoid"], FORMS))
def test_a_float_op_is_pytorch_s_over_all_sizes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Applied(FORMS[name]).eval()
    example = {n: torch.rand(3) + 1 for n in ("user", "left", "right")}
    made = split(module, example, user=("user",), item=("left", "right"))
    whole = torch.arange(-20, 21) * 0.1  # quotients that round up to whole numbers, and 0
    left = torch.cat([whole, 1.7e9 + torch.arange(50) * 128.0, torch.randn(60) * 200, torch.randn(60) * 1e-3])
    right = torch.cat([torch.full((41,), 0.1), torch.randn(50) * 86400, torch.randn(120)])
    feeds = {"user": torch.randn(211), "left": left, "right": right}
    read = {n: feeds[n] for n in made.full.inputs}
    stamp = Stamp("floats", "full", "fp32", ())
    file = export_subgraph(made.full, read, dict.fromkeys(read, "candidates"), tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in read.items()})[0]
    # Remainders and quotients are exact; exponentials and logarithms of FP32 differ by some 1e-7.
    tolerance = 1e-6 if "log" in name else 0.0
    np.testing.assert_allclose(got[:, 1], module(**feeds)[:, 1].numpy(), rtol=tolerance, atol=tolerance)
