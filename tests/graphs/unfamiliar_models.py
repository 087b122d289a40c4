"""Models with ops that no row rule knows, which a trace decomposes; inputs u and i are [N, 4, 8]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graphs.small_models import Keywords

ROWS, LENGTH, WIDTH = 5, 4, 8


def cells(m: Any, u: Tensor, i: Tensor) -> Tensor:
    """Step a GRU cell over the history, with an attention score of the item (DIEN)."""
    state = torch.zeros_like(u[:, 0])
    for step in range(LENGTH):
        state = m.gru(u[:, step], state)
    weighted = state
    for step in range(LENGTH):
        weighted = m.gru(u[:, step] * i[:, 0], weighted)
    return state * i[:, 0] + weighted


def rotated(values: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of values [N, L, D] by complex numbers [L, D / 2] of size 1 (rotary embedding)."""
    pairs = torch.view_as_complex(values.reshape(*values.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * angles[None, : values.shape[1]]).flatten(2).type_as(values)


def filtered(m: Any, values: Tensor) -> Tensor:
    """Multiply the frequencies of a history by complex weights (FMLP-Rec)."""
    frequencies = torch.fft.rfft(values, dim=1, norm="ortho") * torch.view_as_complex(m.filter)
    back: Tensor = torch.fft.irfft(frequencies, n=values.shape[1], dim=1, norm="ortho")
    return back


def long_cells(m: Any, u: Tensor, i: Tensor) -> Tensor:
    state = torch.zeros_like(u[:, 0]), torch.zeros_like(u[:, 0])
    for step in range(LENGTH):
        state = m.lstm(u[:, step], state)
    return state[0] * i[:, 0]


UNFAMILIAR: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "einsum with an ellipsis": lambda m, u, i: torch.einsum("...d,...d->...", m.a(u), i),
    "einsum with axes behind an ellipsis": lambda m, u, i: torch.einsum("b...d,de->b...e", m.a(u) * i, m.square),
    "einsum without a result": lambda m, u, i: torch.einsum("ntd,d", m.a(u) * i, m.square[0]),
    "gru cells": cells,
    "lstm cells": long_cells,
    "bilinear": lambda m, u, i: m.bilinear(u, i),
    "bilinear without a bias": lambda m, u, i: F.bilinear(i[:, 0], m.a(u[:, 0]), m.bilinear.weight),
    "index_add": lambda m, u, i: u.index_add(1, m.places, m.a(u), alpha=2) * i,
    "index_copy": lambda m, u, i: u.index_copy(1, m.places[:2], m.a(u)[:, :2]) * i,
    "index_fill": lambda m, u, i: m.a(u).index_fill(-2, m.places, 2.0) * i,
    "cdist": lambda m, u, i: torch.cdist(m.a(u), i),
    "cdist, sum of differences": lambda m, u, i: torch.cdist(m.a(u), i, p=1.0),
    "cdist, largest difference": lambda m, u, i: torch.cdist(m.a(u), i, p=float("inf")),
    "searchsorted": lambda m, u, i: torch.searchsorted(m.edges, m.a(u)) * i,
    "searchsorted per row": lambda m, u, i: torch.searchsorted(m.a(u).sort(-1).values, i, right=True),
    "quantile": lambda m, u, i: torch.quantile(m.a(u), 0.3, dim=1) * i[:, 0],
    "nanquantile": lambda m, u, i: torch.nanquantile(m.a(u), 0.3, dim=1) * i[:, 0],
    "diagonal": lambda m, u, i: torch.diagonal(m.a(u) @ i.mT, 1, 1, 2),
    "diag_embed": lambda m, u, i: torch.diag_embed(m.a(u)) * i[..., None],
    "cross": lambda m, u, i: torch.linalg.cross(m.a(u)[..., :3], i[..., :3]),
    "rotary embedding": lambda m, u, i: (rotated(m.a(u), m.angles) @ rotated(i, m.angles).mT).softmax(-1) @ u,
    "filtered history": lambda m, u, i: filtered(m, u) * i,
    "odd length": lambda m, u, i: filtered(m, u[:, :3]) * i[:, :3],
    "frequencies": lambda m, u, i: torch.fft.fft(m.a(u)).abs() * torch.fft.ifft2(torch.fft.fft2(i)).real,
    "complex arithmetic": lambda m, u, i: (
        (torch.polar(u.exp(), i) * 2 - torch.complex(u, i).conj() * (1 + 2j)).reshape(-1, 2, 16)[:, 1].angle()
    ),
    "glu of user and item": lambda m, u, i: F.glu(m.wide(torch.cat([u, i], -1)), -1),
}


def unfamiliar(name: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a model and its example inputs."""
    torch.manual_seed(0)
    model = Keywords(
        lambda m, u, i: UNFAMILIAR[name](m, u, i).flatten(1).sum(1),
        a=nn.Linear(WIDTH, WIDTH),
        wide=nn.Linear(2 * WIDTH, 64),
        gru=nn.GRUCell(WIDTH, WIDTH),
        lstm=nn.LSTMCell(WIDTH, WIDTH),
        bilinear=nn.Bilinear(WIDTH, WIDTH, 3),
        square=nn.Parameter(torch.randn(WIDTH, 5)),
        edges=torch.linspace(-1, 1, 7),
        filter=nn.Parameter(torch.randn(1, 3 if name != "odd length" else 2, WIDTH, 2)),
        angles=torch.polar(torch.ones(9, WIDTH // 2, dtype=dtype), torch.randn(9, WIDTH // 2, dtype=dtype)),
        places=torch.tensor([2, 0, 2, 1]),
    )
    if "einsum without" in name:
        model.square = nn.Parameter(torch.randn(1, WIDTH))
    example = {side: torch.randn(ROWS, LENGTH, WIDTH, dtype=dtype) for side in ("u", "i")}
    for parameter in model.parameters():  # Module.to would make the complex buffer real
        parameter.data = parameter.data.to(dtype)
    model.edges = model.edges.to(dtype)
    return model.eval(), example
