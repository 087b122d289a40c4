"""Added nodes have shapes for any number of rows."""

import torch
from torch import Tensor, nn

from graphs.split.rewriter import Rewriter
from graphs.trace.trace import trace


class Model(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return torch.cat([u.tanh(), u], 1).sum(-1)


def test_padding_keeps_the_number_of_rows_open() -> None:
    """Pad of this torch, as matmul of torch 2.10 to 2.12, asks for sizes as numbers, which fixes the batch."""
    traced = trace(Model(), {"u": torch.randn(3, 4, 5)})
    rewriter = Rewriter(traced, dict.fromkeys(traced.module.graph.nodes, "user"))
    source = next(n for n in rewriter.graph.nodes if n.target is torch.ops.aten.tanh.default)
    padded = rewriter.call(source.next, torch.ops.aten.pad.default, source, [0, 1])
    assert isinstance(padded.meta["val"].shape[0], torch.SymInt)
    assert padded.meta["val"].shape[0].node.expr.free_symbols
    assert padded.meta["val"].shape[1:] == (4, 6)
