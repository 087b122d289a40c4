"""Sequence models for one user: keys and values of the history are read by all candidates, never copied to each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.build.graph_exports import export_graphs
from engines.build.source_model import of_module, split_source_model
from export.lowering import lower_for_cpu, lower_for_one_user
from graphs.base.names import USER_INDEX
from tests.suites import slow_but

HISTORY, WIDTH, HEADS, N = 512, 64, 4, 512


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def pointwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    total = q.shape[-2]
    return (F.silu(q @ k.mT) / total * torch.ones(total, total).tril()) @ v


ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {f.__name__: f for f in (softmax, pointwise)}


class Sequence(nn.Module):
    """Two layers over [history | item]."""

    def __init__(self, attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.attention = attention
        self.ids = nn.Embedding(50, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.joint = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2)])
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.ids(torch.cat([history, item], 1))
        for norm, joint in zip(self.norms, self.joint, strict=True):
            q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in joint(norm(x)).chunk(3, -1))
            x = x + self.attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x[:, -1]).squeeze(-1)


def largest(graph: ir.Graph, **sizes: int) -> tuple[int, str]:
    """Return the most bytes that a value computed in the graph takes, and its name."""
    found = (0, "")
    for node in graph.all_nodes():
        for value in node.outputs:
            assert value.shape is not None, value.name
            shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
            assert value.dtype is not None
            found = max(found, (math.prod(shape) * value.dtype.itemsize, str(value.name)))
    return found


@pytest.mark.parametrize("name", slow_but({"softmax"}, ATTENTIONS))
def test_the_history_is_not_copied_to_the_candidates(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    example = {"history": torch.randint(0, 50, (2, HISTORY)), "item": torch.randint(0, 50, (2, 1))}
    source = of_module(Sequence(ATTENTIONS[name]).eval(), example, ("history",), ("item",))
    split = split_source_model(source)
    paths = export_graphs("m", source, split, tmp_path / "onnx")
    path, one = tmp_path / "item.onnx", tmp_path / "one.onnx"
    lower_for_cpu(paths["item"], path, "keep")
    assert lower_for_one_user(path, one)
    # The scores of every candidate with every position; a copy of keys or values is WIDTH / HEADS times as large.
    scores = N * HEADS * (HISTORY + 1) * 4
    size, value = largest(ir.load(one).graph, candidates=N)
    assert size <= scores, value
    items = torch.randint(0, 50, (N, 1))
    state = split.user({"history": example["history"][:1]})
    expected = split.full({"history": example["history"][:1].expand(N, -1), "item": items})
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(one), options, providers=["CPUExecutionProvider"])
    feeds = {n: v.numpy() for n, v in {**state, "item": items}.items()}
    assert USER_INDEX not in {i.name for i in session.get_inputs()}
    for output, value_of in zip(split.item.outputs, session.run(None, feeds), strict=True):
        # FP32 sums of at most HISTORY terms of size about 1.
        np.testing.assert_allclose(value_of, expected[output].numpy(), rtol=0, atol=1e-5)
