"""UG-Sep (arXiv 2602.10455): token mixing in which user rows are computed from user tensors only.

A model carries its activations as ``Tokens(user, item)``. The user rows never touch an item tensor, so the
mask of the paper holds by construction and the splitter finds the cut by itself. ``user=None`` is the
unmasked original: all tokens are then on the item side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """Token-major activations: ``user`` [n, N, D] (or None when unmasked) and ``item`` [m, N, D]."""

    user: Tensor | None
    item: Tensor

    def everything(self) -> Tensor:
        """Return all tokens [n + m, N, D]: what an item row may see."""
        return self.item if self.user is None else torch.cat([self.user, self.item])

    def mean(self) -> Tensor:
        """Return the mean over all tokens [N, D], the user part summed on the user side."""
        item = self.item.sum(0)
        if self.user is None:
            return item / self.item.shape[0]
        return (self.user.sum(0) + item) / (self.user.shape[0] + self.item.shape[0])


def separate(user: Tensor, item: Tensor, ug_sep: bool) -> Tokens:
    """Return the two sides apart, or all tokens together when ``ug_sep`` is off."""
    return Tokens(user, item) if ug_sep else Tokens(None, torch.cat([user, item]))


class Sided(nn.Module):
    """The same layer with weights of its own on each side; the user side may be absent.

    Args:
        user: module applied to the user tokens [n, N, D], None when the model is unmasked.
        item: module applied to the item tokens [m, N, D].
    """

    def __init__(self, user: nn.Module | None, item: nn.Module) -> None:
        super().__init__()
        self.user = user
        self.item = item

    def forward(self, x: Tokens) -> Tokens:
        """Return both sides transformed, shapes as the modules give them."""
        user = None if self.user is None or x.user is None else self.user(x.user)
        return Tokens(user, self.item(x.item))


class Compensation(nn.Module):
    """Information compensation (UG-Sep): a learned projection of the user rows, added to the item rows.

    Shape and position are open in the paper: here ``item_j += sum_i A[j, i] (W user_i)``, at the end of a
    layer, [n, N, D] -> [m, N, D]. It reads user rows only, so it runs once per request.
    """

    def __init__(self, user_tokens: int, item_tokens: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.spread = nn.Parameter(torch.empty(item_tokens, user_tokens))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at the mean over the user tokens."""
        nn.init.constant_(self.spread, 1.0 / self.spread.shape[1])

    def forward(self, x: Tokens) -> Tokens:
        """Return the tokens with the compensation added on the item side."""
        if x.user is None:
            return x
        projected = self.project(x.user).transpose(0, 1)  # [N, n, D]
        added = torch.matmul(self.spread, projected).transpose(0, 1)  # [m, N, D]
        return Tokens(x.user, x.item + added)
