"""Small two-input models with all kinds of edge cases, to split."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphs.split.split import Split, split

N, D = 4, 6


class Any2(nn.Module):
    """A module around a function of its layers and its inputs."""

    def __init__(self, work: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.work = work


class Keywords(Any2):
    def forward(self, u: Tensor, i: Tensor) -> Any:
        return self.work(self, u, i)


WORKS: dict[str, Callable[..., Any]] = {
    "dot product": lambda m, u, i: (u.tanh() * i).sum(-1),
    "tied weights": lambda m, u, i: (m.a(u) * m.a(i)).sum(-1) + (m.a(u) @ m.a.weight).sum(-1),
    "in place": lambda m, u, i: m.a(u).add_(i).relu_().mul_(i).sum(-1),
    "in place on an input": lambda m, u, i: (u.add_(1.0).exp() * i.mul_(2.0)).sum(-1),
    "buffer": lambda m, u, i: ((u.exp() - m.mean) * i).sum(-1),
    "cast": lambda m, u, i: (u.double().exp() * i.double()).sum(-1).float(),
    "user only output": lambda m, u, i: {"score": (m.a(u) * i).sum(-1), "prior": m.a(u).mean(-1)},
    "item only output": lambda m, u, i: {"score": (m.a(u) * i).sum(-1), "prior": m.a(i).mean(-1)},
    "vector output": lambda m, u, i: m.a(u) * i,
    "raw user input": lambda m, u, i: (u * i).sum(-1) + m.a(u).sum(-1),
    "expanded": lambda m, u, i: (m.a(u)[:, None].expand(-1, 7, -1) * i[:, None]).sum((1, 2)),
    "parameter token": lambda m, u, i: (torch.cat([m.token.expand(u.shape[0], -1), m.a(u), i], 1)).sin().sum(-1),
    "broadcast product": lambda m, u, i: (i[:, None] @ (m.a(u)[:, :, None] * u[:, None])).squeeze(1).sum(-1),
    "product from the left": lambda m, u, i: ((m.a(u)[:, :, None] * u[:, None]) @ i[..., None]).squeeze().sum(-1),
    "heads": lambda m, u, i: (i.view(-1, 2, 1, 3) @ m.a(u).view(-1, 2, 3, 1)).sum((1, 2, 3)),
    "folded rows": lambda m, u, i: (m.a(u).view(-1, 3) @ m.b + i.view(-1, 3)).view(-1, D).sum(-1),
    "folded state": lambda m, u, i: (m.a(u).view(-1, 3).exp() * i.view(-1, 3)).view(-1, D).sum(-1),
    "token major": lambda m, u, i: (m.a(u).view(-1, 2, 3).transpose(0, 1) @ m.c * i[None, :, :3]).sum((0, 2)),
    "uniform": lambda m, u, i: (torch.cat([torch.zeros_like(u), m.a(u)], 1) * torch.cat([i, i], 1)).sum(-1),
    "mask": lambda m, u, i: m.a(u).masked_fill(i > 0, -1.0).softmax(-1)[:, 0] + i.masked_fill(u > 0, 2.0).sum(-1),
    "einsum": lambda m, u, i: torch.einsum("nd,nd->n", m.a(u), i),
    "where": lambda m, u, i: torch.where(u.cos() > i, m.a(u), i).sum(-1),
    "same op both sides": lambda m, u, i: (m.a(u) + m.a(i)).sum(-1),
}


def layers() -> dict[str, Any]:
    """Return the layers of the models above, with random values."""
    return {
        "a": nn.Linear(D, D),
        "b": nn.Parameter(torch.randn(3, 3)),
        "c": nn.Parameter(torch.randn(2, 3, 3)),
        "mean": torch.randn(D),
        "token": nn.Parameter(torch.randn(1, D)),
    }


def small(name: str) -> Split:
    """Split one of the models above."""
    torch.manual_seed(1)
    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    return split(Keywords(WORKS[name], **layers()).eval(), example, user=["u"], item=["i"])
