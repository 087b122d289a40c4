"""A subgraph becomes a program without being traced again: the same scores, the same ops and weights."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from export import onnx_file
from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.split.split import Subgraph, split


class Parts(nn.Module):
    """Ops that the exporter only knows in parts: one writes in place (RMSNorm), one returns several tensors (chunk).

    Another one counts rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(6)
        self.first = nn.Linear(6, 4)
        self.fixed = nn.Buffer(torch.randn(4))

    def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        user = self.first(self.norm(u))  # [N, 4]
        wide = nn.functional.pad(user, [0, 2]).unsqueeze(0).movedim(1, 0).squeeze(1)  # [N, 6]
        rows = torch.zeros(i.shape[0], 1) + self.fixed.sum()
        _, left, right = i.chunk(3, 1)
        return torch.addmm(rows, wide * i, torch.ones(6, 1)).squeeze(-1) + (left - 2 * right).sum(1)


@pytest.fixture(scope="module")
def subgraphs() -> dict[str, Subgraph]:
    torch.manual_seed(0)
    found = split(Parts().eval(), (torch.randn(3, 6), torch.randn(3, 6)), user=["u"], item=["i"])
    return {"user": found.user, "full": found.full}


def _feeds(subgraph: Subgraph, rows: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(rows, 6) for name in subgraph.inputs}


def _axes(subgraph: Subgraph) -> dict[str, str]:
    return dict.fromkeys(subgraph.inputs, "candidates")


@pytest.mark.parametrize("side", ["user", "full"])
def test_a_half_is_written_without_tracing_it_again(
    subgraphs: dict[str, Subgraph], side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subgraph = subgraphs[side]

    def again(*_: object, **__: object) -> None:
        raise AssertionError("traced again")

    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", again)
        file = export_subgraph(
            subgraph, _feeds(subgraph, 3), _axes(subgraph), tmp_path / "a.onnx", Stamp("m", "full", "fp32", ())
        )
    session = ort.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    assert all(i.shape[0] == "candidates" for i in session.get_inputs())
    for rows in (1, 2, 5):
        feeds = _feeds(subgraph, rows)
        got = session.run(None, {n: v.numpy() for n, v in feeds.items()})
        for value, want in zip(got, subgraph(feeds).values(), strict=True):
            np.testing.assert_allclose(value, want.numpy(), rtol=1e-5, atol=1e-5)  # FP32 sums of 6 terms


@pytest.mark.parametrize("side", ["user", "full"])
def test_the_graph_is_the_one_that_tracing_again_gives(
    subgraphs: dict[str, Subgraph],
    side: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    subgraph, stamp = subgraphs[side], Stamp("m", "full", "fp32", ())
    short = export_subgraph(subgraph, _feeds(subgraph, 3), _axes(subgraph), tmp_path / "short.onnx", stamp)

    def refused(*_: object) -> None:
        raise ValueError("an op that does not go the short way")

    monkeypatch.setattr(onnx_file, "program_of", refused)
    with caplog.at_level(logging.INFO, "export.onnx_file"):
        long = export_subgraph(subgraph, _feeds(subgraph, 3), _axes(subgraph), tmp_path / "long.onnx", stamp)
    assert "does not go the short way" in caplog.text
    ops = [[n.op_type for n in onnx.load(f.path).graph.node] for f in (short, long)]
    assert sorted(ops[0]) == sorted(ops[1])
    weights = [{t.name: t.raw_data for t in onnx.load(f.path).graph.initializer} for f in (short, long)]
    named = {n for n in weights[1] if "." in n or n == "fixed"}
    assert named
    assert all(weights[0][n] == weights[1][n] for n in named)
