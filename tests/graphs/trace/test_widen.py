"""Models in bfloat16, float16 and under autocast are computed in float32, with their own weights."""

from __future__ import annotations

import copy
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
from graphs.split.proof import prove_split
from graphs.split.split import split
from graphs.trace.trace import trace


class Dot(nn.Module):
    """A user tower and an item embedding, with one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 6))
        self.item = nn.Embedding(40, 6)
        self.again = self.item

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        dtype = self.item.weight.dtype
        rows = self.item(item) * self.again(item.clamp(max=5))
        return (self.user(user.to(dtype)) * rows).sum(1)


class Autocast(Dot):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            return super().forward(user, item)


class Decorated(Dot):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return super().forward(user, item)


class Bits(Dot):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        scores = super().forward(user, item)
        return (scores.view(torch.int16) & 0x7FF0).view(torch.bfloat16)


MODELS: dict[str, tuple[Callable[[], Dot], torch.dtype]] = {
    "bfloat16": (lambda: Dot().bfloat16(), torch.float32),
    "bfloat16 inputs": (lambda: Dot().bfloat16(), torch.bfloat16),
    "float16": (lambda: Dot().half(), torch.float32),
    "autocast": (lambda: Autocast(torch.bfloat16), torch.float32),
    "autocast to float16": (lambda: Autocast(torch.float16), torch.float32),
    "autocast as a decorator": (Decorated, torch.float32),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_file_computes_the_float32_scores(name: str, tmp_path: Path) -> None:
    factory, dtype = MODELS[name]
    module = factory().eval()
    weights = copy.deepcopy(module.state_dict())
    made = split(module, (torch.randn(7, 3, dtype=dtype), torch.arange(7)), user=["user"], item=["item"])
    assert made.traced.widened
    prove_split(made)
    feeds = {"user": torch.randn(33, 3), "item": torch.randint(0, 40, (33,))}
    rows = dict.fromkeys(feeds, "candidates")
    file = export_subgraph(made.full, feeds, rows, tmp_path / "full.onnx", Stamp("m", "full", "fp32", ()))
    got = ort.InferenceSession(str(file.path)).run(None, {n: v.numpy() for n, v in feeds.items()})[0]
    exact = Dot()
    exact.load_state_dict({n: v.float() for n, v in weights.items()})
    with torch.no_grad():
        wanted = exact.eval()(**feeds).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)  # FP32 sums of a few terms, on values near 1
    assert all(module.state_dict()[n].dtype == v.dtype for n, v in weights.items()), "the model stays as it was"


def test_tied_weights_stay_tied() -> None:
    graph = trace(Dot().bfloat16().eval(), (torch.randn(7, 3), torch.arange(7))).module
    read = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    tables = [graph.get_parameter(n) for n in read if graph.get_parameter(n).shape == (40, 6)]
    assert {t.dtype for t in tables} == {torch.float32}
    assert len({id(t) for t in tables}) == 1


def test_a_float32_model_is_left_alone() -> None:
    assert not trace(Dot().eval(), (torch.randn(7, 3), torch.arange(7))).widened


def test_views_of_bits_are_refused_with_their_line() -> None:
    with pytest.raises(UgsepError, match=r"view\.dtype in the model \(test_widen\.py:\d+\).*call \.float\(\)"):
        trace(Bits().bfloat16().eval(), (torch.randn(7, 3), torch.arange(7)))
