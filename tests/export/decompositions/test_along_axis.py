"""Buckets, running extremes and order statistics, exported: PyTorch's values, ties and NaN included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import UgsepError
from graphs.split.split import Split, split
from tests.suites import slow_but

EDGES = [-1.5, -1.0, 0.0, 0.0, 0.5, 2.0]


class Applied(nn.Module):
    """A function of a row's values beside a user feature."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part

    def forward(self, user: Tensor, values: Tensor) -> Tensor:
        return torch.cat([user, self.part(values).flatten(1).to(user.dtype)], 1)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "bucketize": lambda v: torch.bucketize(v, torch.tensor(EDGES)),
    "bucketize, right": lambda v: torch.bucketize(v, torch.tensor(EDGES), right=True, out_int32=True),
    "bucketize integers": lambda v: torch.bucketize((v.nan_to_num() * 2).long(), torch.tensor([-2, 0, 0, 3])),
    "cummax": lambda v: torch.cummax(v, 2).values,
    "positions of cummax": lambda v: torch.cummax(v, -1).indices,
    "cummin": lambda v: torch.cat(torch.cummin(v, 1), 2),
    "cummax of integers": lambda v: torch.cummax((v.nan_to_num() * 2).long(), 2).values,
    "logcumsumexp": lambda v: torch.logcumsumexp(v.nan_to_num() * 100, 2),
    "kthvalue": lambda v: torch.kthvalue(v.nan_to_num(), 3, 2).values,
    "kthvalue, axis kept": lambda v: torch.kthvalue(v.nan_to_num(), 1, 1, keepdim=True).values,
    "median": lambda v: v.median(2).values,
    "median of an even number, axis kept": lambda v: v.median(1, keepdim=True).values,
    "mode": lambda v: v.nan_to_num().mode(2).values,
    "mode of integers": lambda v: (v.nan_to_num() * 2).long().mode(-1, keepdim=True).values,
}


def _split(part: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Split]:
    module = Applied(part).eval()
    return module, split(module, (torch.randn(3, 2), torch.randn(3, 4, 5)), user=("user",), item=("values",))


@pytest.mark.parametrize("name", slow_but(["bucketize", "positions of cummax", "logcumsumexp", "median"], FORMS))
def test_an_op_along_an_axis_is_pytorch_s(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, made = _split(FORMS[name])
    values = (torch.randn(200, 4, 5) * 2).round() / 2  # many ties, and values that are edges
    values[100:][torch.rand(100, 4, 5) < 0.1] = torch.nan
    feeds = {"user": torch.randn(200, 2), "values": values}
    stamp = Stamp("axis", "full", "fp32", ())
    file = export_subgraph(made.full, feeds, dict.fromkeys(feeds, "candidates"), tmp_path / "full.onnx", stamp)
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    # All but the logarithms are exact; those are sums of FP32 of up to a few hundred, whose last digit is 3e-5.
    tolerance = 1e-6 if "log" in name else 0.0
    np.testing.assert_allclose(got, module(**feeds).numpy(), rtol=tolerance, atol=30 * tolerance)


def test_positions_that_pytorch_leaves_open_are_refused(tmp_path: Path) -> None:
    _, made = _split(lambda v: v.median(2).indices)
    feeds = {"user": torch.randn(3, 2), "values": torch.randn(3, 4, 5)}
    stamp = Stamp("axis", "full", "fp32", ())
    with pytest.raises(UgsepError, match=r"median\.dim .* first value only; take positions from torch\.sort"):
        export_subgraph(made.full, feeds, dict.fromkeys(feeds, "candidates"), tmp_path / "full.onnx", stamp)
