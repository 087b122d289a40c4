"""Models that training mode, buffers or outputs make unfit to split are rejected; so does the random check alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.independence import check_rows_independent
from graphs.split.split import split
from graphs.trace.trace import trace
from tests.graphs.row_models import Inner, N, Outer, example


@pytest.mark.parametrize("layer", ["norm", "drop"])
def test_refuses_training_mode(layer: str) -> None:
    def work(m: Inner, x: Tensor, ids: Tensor) -> Tensor:
        y: Tensor = getattr(m, layer)(x[:, 0])
        return y

    with pytest.raises(UgsepError, match=rf"rows depend on each other: .*body\.{layer}.*call \.eval\(\)"):
        check_rows_independent(trace(Outer(work).train(), example()))
    assert check_rows_independent(trace(Outer(work).eval(), example()))


def test_refuses_a_buffer_written_in_forward() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, u: Tensor, i: Tensor) -> Tensor:
            self.seen.add_(1.0)
            return (u * i * self.seen).sum(-1)

    with pytest.raises(UgsepError, match=r"updates the buffer 'seen'"):
        split(Counter(), {"u": torch.randn(N, 3), "i": torch.randn(N, 3)}, user=["u"], item=["i"])


def test_refuses_an_output_that_is_not_batch_first() -> None:
    class Turned(nn.Module):
        def forward(self, u: Tensor, i: Tensor) -> dict[str, Tensor]:
            return {"score": (u.exp() + i).T}

    with pytest.raises(UgsepError, match=r"output 'score' of .* batch first"):
        split(Turned(), {"u": torch.randn(N, 3), "i": torch.randn(N, 3)}, user=["u"], item=["i"])


def test_random_check_sees_what_it_is_told_to_miss() -> None:
    """The random check alone rejects a graph that mixes rows."""
    from graphs.split.proof import rows_influence
    from graphs.split.split import Subgraph

    traced = trace(Outer(lambda m, x, i: x - x.mean(0)).eval(), example())
    moved = rows_influence(
        Subgraph(traced.module, traced.inputs, traced.outputs), traced, torch.Generator().manual_seed(0)
    )
    assert moved > 1e-2
    assert math.isfinite(moved)
