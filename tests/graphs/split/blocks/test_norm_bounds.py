"""How long vectors can be, for every input: never shorter than what random inputs, and the worst ones, reach."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from graphs.rows.sides import assign_sides
from graphs.split.blocks.norm_bounds import LengthBounds
from graphs.split.rewriter import Rewriter
from graphs.trace.trace import trace

WIDTH = 6


class Model(nn.Module):
    def __init__(self, work: Callable[["Model", Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.norm, self.rms = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.wide, self.weight = nn.Linear(WIDTH, 2 * WIDTH), nn.Parameter(torch.randn(WIDTH, 4))
        self.turn = nn.Buffer(torch.randn(5, WIDTH))
        for part in (self.norm, self.rms):
            nn.init.normal_(part.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, u: Tensor) -> Tensor:
        return self.work(self, u)


WORKS: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "layer norm": lambda m, x: m.norm(x),
    "rms norm": lambda m, x: m.rms(x),
    "linear": lambda m, x: m.wide(m.norm(x)),
    "matmul": lambda m, x: m.rms(x) @ m.weight,
    "heads": lambda m, x: m.wide(m.norm(x)).view(-1, 5, 3, 4).transpose(1, 2),
    "joined heads": lambda m, x: m.norm(x).unflatten(-1, (2, 3)).transpose(1, 2).transpose(1, 2).flatten(2),
    "pieces": lambda m, x: m.wide(m.norm(x)).chunk(2, -1)[1] - 2 * m.norm(x),
    "turned": lambda m, x: m.norm(x) * m.turn + torch.cat([-m.norm(x)[..., 3:], m.norm(x)[..., :3]], -1) / 3,
    "activations": lambda m, x: F.silu(m.norm(x)) + F.gelu(m.rms(x)) + x.tanh() + (x * 9).sigmoid(),
    "averaged": lambda m, x: (x @ x.mT).softmax(-1) @ m.norm(x),
    "positions": lambda m, x: torch.cat([m.norm(x), m.turn.expand(x.shape[0], -1, -1) * 3], 1)[:, 1:],
    "repeated": lambda m, x: m.norm(x)[:, :, None].expand(-1, -1, 3, -1).reshape(-1, 15, WIDTH),
    "widened": lambda m, x: m.norm(x)[..., :1].expand(-1, -1, 4),
}
UNBOUNDED: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "input": lambda m, x: x * 0.5,
    "squares": lambda m, x: m.norm(x) * m.norm(x),
    "turned away": lambda m, x: m.norm(x).transpose(1, 2),
    "sum over positions": lambda m, x: m.norm(x).cumsum(1),
    "repeated elements": lambda m, x: m.norm(x).repeat_interleave(2, -1),
    "other columns": lambda m, x: m.norm(x)[:, :2].reshape(-1, 3, 4),
}


def _bounds(work: Callable[[Model, Tensor], Tensor]) -> tuple[Model, LengthBounds, fx.Node]:
    torch.manual_seed(0)
    model = Model(work).double().eval()
    traced = trace(model, {"u": torch.randn(3, 5, WIDTH).double()})
    rewriter = Rewriter(traced, assign_sides(traced.module.graph, {"u": "item"}))
    output = next(n for n in rewriter.graph.nodes if n.op == "output")
    return model, LengthBounds(rewriter), output.args[0][0]


@pytest.mark.parametrize("name", WORKS)
def test_no_vector_is_longer(name: str) -> None:
    model, bounds, result = _bounds(WORKS[name])
    bound = bounds.of(result)
    # Normed vectors are longest along one axis, or along the gains.
    rows = [
        torch.randn(200, 5, WIDTH),
        1e3 * torch.eye(WIDTH)[:5].expand(2, 5, WIDTH),
        1e3 * model.rms.weight.expand(2, 5, WIDTH),
    ]
    with torch.no_grad():
        longest = max(float(model(r.double()).norm(dim=-1).max()) for r in rows)
    assert longest <= bound * (1 + 1e-12)
    # Bounds of sums and products are not tight, but of use: within the number of axes squared here.
    assert bound <= longest * WIDTH * WIDTH


@pytest.mark.parametrize("name", UNBOUNDED)
def test_nothing_is_known_of_others(name: str) -> None:
    _, bounds, result = _bounds(UNBOUNDED[name])
    assert bounds.of(result) == float("inf")


def test_scores_are_bounded_by_both_lengths() -> None:
    model, bounds, result = _bounds(lambda m, x: m.wide(m.norm(x)) @ m.wide(m.rms(x)).transpose(1, 2))
    with torch.no_grad():
        largest = float(model(torch.randn(200, 5, WIDTH).double()).abs().max())
    assert largest <= bounds.score(result) / 2  # half of it is for the rounding of weights
    _, bounds, result = _bounds(lambda m, x: m.norm(x) @ x.transpose(1, 2))
    assert bounds.score(result) == float("inf")
