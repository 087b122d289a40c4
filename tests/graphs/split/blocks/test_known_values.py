"""What masks hide or set to zero for every input, and what they do not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphs.rows.sides import assign_sides
from graphs.split.blocks.known_values import KnownValues
from graphs.split.rewriter import Rewriter
from graphs.trace.trace import trace

LATER = torch.ones(4, 4, dtype=torch.bool).triu(1)
INF = float("inf")
LOWEST = torch.finfo(torch.float32).min


class Scores(nn.Module):
    later: Tensor

    def __init__(self, work: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.register_buffer("later", LATER)

    def forward(self, q: Tensor, there: Tensor) -> Tensor:
        return self.work(q @ q.mT, there, self.later)


def found(work: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[KnownValues, torch.fx.Node]:
    example = {"q": torch.randn(3, 2, 4, 5), "there": torch.rand(3, 4) < 0.5}
    traced = trace(Scores(work), example)
    sides = assign_sides(traced.module.graph, {"q": "item", "there": "user"})
    rewriter = Rewriter(traced, sides)
    output = next(n for n in rewriter.graph.nodes if n.op == "output")
    (result,) = output.args[0]
    return KnownValues(rewriter), result


def shown(flags: Tensor | None) -> Tensor:
    return torch.zeros(4, 4, dtype=torch.bool) if flags is None else flags.expand(1, 2, 4, 4)[0, 0]


HIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "masked fill": lambda s, there, later: s.masked_fill(later, -INF),
    "where": lambda s, there, later: torch.where(~later, s / 2, -INF),
    "added": lambda s, there, later: s + torch.zeros(4, 4).masked_fill(later, -INF),
    "added triangle": lambda s, there, later: torch.full((4, 4), -INF).triu(1) + s,
    "subtracted": lambda s, there, later: s - later.float() * 1e9,
    "finite": lambda s, there, later: s.masked_fill(later, -1e9),
    "finfo": lambda s, there, later: s.masked_fill(later, LOWEST),
    "finfo added": lambda s, there, later: s + torch.full((4, 4), LOWEST).triu(1),
    "finfo chosen": lambda s, there, later: torch.where(later, LOWEST, s * 0.5),
    "finite bias": lambda s, there, later: (s + torch.linspace(-9, 9, 4)).masked_fill(later, -1e9),
    "of a sum": lambda s, there, later: (s[..., None] * s[..., None]).sum(-1).masked_fill(later, -1e9),
    "of joined products": lambda s, there, later: (
        torch.cat([s[:, :1], s[:, 1:]], 1).view(-1, 4, 2, 2).flatten(2).view(-1, 2, 4, 4) @ s
    ).masked_fill(later, LOWEST),
    "of norms with gains": lambda s, there, later: (
        (torch.linspace(0.5, 2, 4) * (s.sigmoid() * torch.rsqrt(s.sum(-1, keepdim=True).exp()))) @ s
    ).masked_fill(later, LOWEST),
    "of sums of scaled products": lambda s, there, later: ((s * 0.6 - s.mT * 0.8) @ s).masked_fill(later, LOWEST),
    # Every position sees itself, so no row is without scores.
    "finite with padding but of itself": lambda s, there, later: s.masked_fill(
        later | (~there[:, None, None] & ~torch.eye(4, dtype=torch.bool)), -1e9
    ),
    "small padding": lambda s, there, later: (s - 99.0 * ~there[:, None, None]).masked_fill(later, -1e9),
    "sums of masks": lambda s, there, later: s + (
        torch.zeros(4, 4).masked_fill(later, -INF) + torch.where(there, 0.0, -INF)[:, None, None]
    ),
    "padding chosen in a mask": lambda s, there, later: s + torch.where(
        there[:, None, None], torch.zeros(4, 4).masked_fill(later, -INF), -INF
    ),
    "padding of zeros": lambda s, there, later: s.masked_fill(~(~later & there[:, None, None]), -INF),
    "logical and": lambda s, there, later: torch.where(torch.logical_and(~later, there[:, None, None]), s, -INF),
    "repeated": lambda s, there, later: s.masked_fill(later.repeat(s.shape[0], 2, 1, 1), -INF),
    "with padding": lambda s, there, later: s.masked_fill(later | ~there[:, None, None], -INF),
    "and padding": lambda s, there, later: torch.where(~later & there[:, None, None], s, -INF),
    "then padding": lambda s, there, later: s.masked_fill(later, -INF).masked_fill(~there[:, None, None], -INF),
    "folded": lambda s, there, later: s.view(-1, 4, 4).masked_fill(later, -INF).view(-1, 2, 4, 4),
}  # fmt: skip
SHOWS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "no mask": lambda s, there, later: s * 2,
    "small": lambda s, there, later: s.masked_fill(later, -100.0),
    "the other side": lambda s, there, later: torch.where(later | ~later, s, -INF),
    "overwritten": lambda s, there, later: s.masked_fill(later, -INF).masked_fill(~there[:, None, None], -1e9),
    # Below other scores, but for all we know not by as much as it takes.
    "ten thousand": lambda s, there, later: s.masked_fill(later, -1e4),
    "ten thousand added": lambda s, there, later: s + later * -1e4,
    # A row of padding would not see anything, whatever makes the number large.
    "padding by a sum": lambda s, there, later: (
        s + torch.stack([~there * -1e9, ~there * -1.0], -1).sum(-1)[:, None, None]
    ).masked_fill(later, -1e9),
    "padding times a number, in a product": lambda s, there, later: (
        (s + ~there[:, None, None] * -1e9) @ s
    ).masked_fill(later, -1e9),
    "hidden by a sum that is taken back": lambda s, there, later: (s - later * 1e9) + later * 1e9,
    "all of a row": lambda s, there, later: s.masked_fill(later | torch.ones(4, 1, dtype=torch.bool), LOWEST),
    "sums of finfo with padding": lambda s, there, later: s + (
        torch.zeros(4, 4).masked_fill(later, LOWEST) + torch.where(there, 0.0, LOWEST)[:, None, None]
    ),
    # A row of padding sees nothing: then softmax is the mean of all positions.
    "finite with padding": lambda s, there, later: s.masked_fill(later | ~there[:, None, None], -1e9),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDES)
def test_hidden_before_a_softmax(name: str) -> None:
    values, result = found(HIDES[name])
    assert torch.equal(shown(values.hidden(result)), LATER)


@pytest.mark.parametrize("name", SHOWS)
def test_not_certainly_hidden(name: str) -> None:
    values, result = found(SHOWS[name])
    assert not shown(values.hidden(result)).any()


def test_zero_after_a_softmax_and_by_a_factor() -> None:
    works: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
        lambda s, there, later: s.masked_fill(later, -INF).softmax(-1),
        lambda s, there, later: torch.sigmoid(s) * ~later,
        lambda s, there, later: s.masked_fill(later, 0.0) / there[:, None, None].float().cumsum(-1).add(1),
    )
    for work in works:
        values, result = found(work)
        assert torch.equal(shown(values.zero(result)), LATER)


def test_a_softmax_over_another_axis_zeroes_nothing() -> None:
    values, result = found(lambda s, there, later: s.masked_fill(later.mT, -INF).softmax(-2))
    assert values.zero(result) is None


def test_a_mask_without_values_hides_nothing() -> None:
    values, result = found(HIDES["added"])
    later = next(n for n in values.rewriter.graph.nodes if n.op == "get_attr" and "later" in str(n.target))
    values.rewriter.tensors[str(later.target)] = LATER.to("meta")
    assert not shown(values.hidden(result)).any()
