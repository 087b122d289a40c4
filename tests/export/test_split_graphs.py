"""What the splitter writes for attention, exported: both graphs in ONNX Runtime against the model in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.names import USER_INDEX
from graphs.split.split import Subgraph, split
from tests.suites import slow_but

HISTORY, ITEMS, WIDTH, HEADS = 5, 2, 8, 2
TOTAL = HISTORY + ITEMS
aten = torch.ops.aten


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def pooled(m: Attended, x: Tensor, there: Tensor) -> Tensor:
    """A learned query; rows of padding alone are 0."""
    mask = there[:, None, None, :].expand(-1, HEADS, 3, -1)
    return F.scaled_dot_product_attention(
        m.queries.expand(x.shape[0], -1, -1, -1), heads(x), heads(x), attn_mask=mask
    )


def nothing_seen(m: Attended, x: Tensor, there: Tensor) -> Tensor:
    """Positions of padding see nothing, in some rows all of them."""
    q, k, v = (heads(t) for t in m.joint(x).chunk(3, -1))
    sees = torch.ones(TOTAL, TOTAL, dtype=torch.bool).tril() & there[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees)


def shared_heads(m: Attended, x: Tensor, there: Tensor) -> Tensor:
    """One head of keys for two of queries, and a mask of zeros like another tensor."""
    q, k, v = (heads(t) for t in m.joint(x).chunk(3, -1))
    padding = torch.zeros_like(there, dtype=x.dtype).masked_fill(~there, -3.0)[:, None, None]
    later = torch.zeros(TOTAL, TOTAL).masked_fill(torch.ones(TOTAL, TOTAL, dtype=torch.bool).triu(1), -math.inf)
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], attn_mask=later + padding, enable_gqa=True)


def flexible(m: Attended, x: Tensor, there: Tensor) -> Tensor:
    q, k, v = (heads(t) for t in m.joint(x).chunk(3, -1))
    mask = create_block_mask(
        lambda b, h, i, j: (i >= j) & (there[b, j] | (i == j)), x.shape[0], None, TOTAL, TOTAL, device="cpu"
    )
    return flex_attention(q, k, v, lambda s, b, h, i, j: torch.tanh(s) + m.table[h, i - j], mask)


def looked_up(m: Attended, x: Tensor, there: Tensor) -> Tensor:
    """A mask of all rows: by position, by lookups at each row's own, and added as the lowest number."""
    q, k, v = (heads(t) for t in m.joint(x).chunk(3, -1))
    rows = torch.arange(x.shape[0])[:, None, None, None]
    steps = torch.ones(x.shape[0], TOTAL, dtype=torch.int64).cumsum(1)
    i, j = torch.arange(TOTAL)[None, None, :, None], torch.arange(TOTAL)[None, None, None]
    sees = (steps[rows, i] >= steps[rows, j]) & (there[rows, j] | (i == j))
    return (q @ k.mT + torch.where(sees, 0.0, torch.finfo(torch.float32).min)).softmax(-1) @ v


FORMS: dict[str, Callable[[Attended, Tensor, Tensor], Tensor]] = {
    f.__name__: f for f in (pooled, nothing_seen, shared_heads, flexible, looked_up)
}
# The op that each form is here for, in one of the two graphs.
WRITTEN = {
    "pooled": aten.amax.default,
    "nothing_seen": aten._safe_softmax.default,
    "shared_heads": aten.full.default,
    "flexible": aten._safe_softmax.default,
    "looked_up": aten.softmax.int,
}


class Attended(nn.Module):
    """One attention over [history | item], 0 is padding; every position is scored for the item."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = FORMS[form]
        self.ids, self.joint = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.queries, self.table = (
            nn.Parameter(torch.randn(HEADS, 3, WIDTH // HEADS)),
            nn.Buffer(torch.randn(HEADS, TOTAL)),
        )

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        joined = torch.cat([history, item], 1)
        x = self.ids(joined)
        mixed = self.form(self, x, joined != 0).transpose(1, 2).flatten(2)
        return (mixed.cumsum(1) * x[:, -1:]).sum(2)


def run(subgraph: Subgraph, feeds: dict[str, Tensor], rows: dict[str, str], path: Path) -> list[Tensor]:
    feeds = {n: feeds[n] for n in subgraph.inputs}
    file = export_subgraph(subgraph, feeds, rows, path, Stamp("m", "full", "fp32", ()))
    session = ort.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    read = {i.name for i in session.get_inputs()}
    values = session.run(None, {n: v.numpy() for n, v in feeds.items() if n in read})
    return [torch.from_numpy(np.asarray(v)) for v in values]


@pytest.mark.parametrize("form", slow_but({"nothing_seen"}, FORMS))
def test_both_graphs_in_onnx_runtime(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attended(form).eval()
    example = {"history": torch.randint(0, 20, (3, HISTORY)), "item": torch.randint(0, 20, (5, ITEMS))}
    example["history"][1] = 0  # padding alone
    example["item"][4] = 0
    index = torch.tensor([0, 1, 2, 0, 1])
    whole = {"history": example["history"][index], "item": example["item"]}
    found = split(model, whole, user=["history"], item=["item"])
    called = {n.target for g in (found.user, found.item) for n in g.module.graph.nodes}
    assert WRITTEN[form] in called
    state = run(found.user, example, dict.fromkeys(found.user.inputs, "users"), tmp_path / "user.onnx")
    feeds = {**dict(zip(found.user.outputs, state, strict=True)), "item": example["item"], USER_INDEX: index}
    rows = {n: "users" if n in found.user.outputs else "candidates" for n in found.item.inputs}
    (scores,) = run(found.item, feeds, rows, tmp_path / "item.onnx")
    with torch.no_grad():
        expected = model(**whole)
    assert bool(expected.isfinite().all())
    # Sums of some 50 products of numbers up to 3 in single precision.
    torch.testing.assert_close(scores, expected, rtol=0, atol=50 * 9 * 2**-23)
