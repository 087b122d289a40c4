"""UG-Sep (arXiv 2602.10455): token mixing in which user rows are computed from user tensors only.

Activations are ``Tokens(user, item)``, the paper's U and G tokens. User rows never read an item tensor, so the
paper's mask holds by construction and the splitter finds the cut without hints. ``user=None`` is the unmasked
original, with all tokens on the item side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphs.layers.tokenwise import cut_last


@dataclass(frozen=True)
class Tokens:
    """Token-major activations: ``user`` [n, N, D] (or None when unmasked) and ``item`` [m, N, D]."""

    user: Tensor | None
    item: Tensor

    def everything(self) -> Tensor:
        """Return all tokens [n + m, N, D], which an item row may read."""
        return self.item if self.user is None else torch.cat([self.user, self.item])

    def __add__(self, other: Tokens) -> Tokens:
        """Add each side: the plain residual, for equal token counts."""
        user = None if self.user is None or other.user is None else self.user + other.user
        return Tokens(user, self.item + other.item)

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """Apply one function with shared weights to each side."""
        return Tokens(None if self.user is None else function(self.user), function(self.item))

    def mean(self) -> Tensor:
        """Return the mean over all tokens [N, D], the user tokens summed on the user side."""
        item = self.item.sum(0)
        if self.user is None:
            return item / self.item.shape[0]
        return (self.user.sum(0) + item) / (self.user.shape[0] + self.item.shape[0])


def separate(user: Tensor, item: Tensor, ug_sep: bool) -> Tokens:
    """Keep the two sides separate, or join all tokens if ``ug_sep`` is off."""
    return Tokens(user, item) if ug_sep else Tokens(None, torch.cat([user, item]))


class Sided(nn.Module):
    """The same layer with separate weights on each side; the user side may be absent.

    Args:
        user: module applied to the user tokens [n, N, D], None when the model is unmasked.
        item: module applied to the item tokens [m, N, D].
    """

    def __init__(self, user: nn.Module | None, item: nn.Module) -> None:
        super().__init__()
        self.user = user
        self.item = item

    def forward(self, x: Tokens) -> Tokens:
        """Return both sides transformed."""
        user = None if self.user is None or x.user is None else self.user(x.user)
        return Tokens(user, self.item(x.item))


def each_side(user: int, item: int, make: Callable[[int], nn.Module]) -> Sided:
    """Return ``make(tokens)`` for each side, none for 0 user tokens (unmasked)."""
    return Sided(make(user) if user else None, make(item))


class Compensation(nn.Module):
    """Information compensation (UG-Sep): a learned projection of the user rows, added to the item rows.

    The paper leaves shape and position open: here ``item_j += sum_i A[j, i] (W user_i)``, [n, N, D] -> [m, N, D],
    in each layer between token mixing and the network per feature token (TokenMixer-Large: at the end of the layer).
    It reads user rows only, so it runs once per request.
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


def masked_mix(x: Tokens, user_rows: int, item_rows: int) -> Tokens:
    """Masked parameter-free token mixing: row h gathers the h-th slice of every token (2507.15551, 2602.10455).

    [n, N, W], [m, N, W] -> [user_rows, N, (n + m) w], [item_rows, N, (n + m) w] with w = W / (user_rows +
    item_rows). The first ``user_rows`` rows are user rows: their slices of item tokens are zero. Values keep the
    order of the tokens, so an item row is [user slices | item slices]. Unmasked, all rows are item rows.

    Reverting is the same operation with the token counts as row counts: ``masked_mix(mixed, n, m)`` returns to each
    token its slice of every row, with zeros for the slices of item rows in user tokens (TokenMixer-Large needs this
    mask too, or user tokens would read item rows).
    """
    rows = user_rows + item_rows
    if x.user is None:
        return Tokens(None, _gather_slices(x.item, rows))
    width = x.item.shape[-1] // rows
    of_user = _gather_slices(x.user, rows)  # [rows, N, n*w], slices of user tokens
    of_item = _gather_slices(x.item[..., user_rows * width :], item_rows)  # [item_rows, N, m*w]
    zeros = (0, x.item.shape[0] * width)
    return Tokens(functional.pad(of_user[:user_rows], zeros), torch.cat([of_user[user_rows:], of_item], -1))


def _gather_slices(x: Tensor, rows: int) -> Tensor:
    """[t, N, rows*w] -> [rows, N, t*w]."""
    return cut_last(x, rows).permute(2, 1, 0, 3).flatten(2)


def ug_attention(query: Tokens, key: Tokens, value: Tokens, heads: int) -> Tokens:
    """Softmax attention under the UG mask: user queries see user keys only, item queries see all keys.

    Args:
        query: [q_u, N, D] and [q_g, N, D].
        key: [n, N, D] and [m, N, D].
        value: as ``key``.
        heads: number of heads; divides D.

    Returns:
        [q_u, N, D] and [q_g, N, D]. Keys and values of user tokens are read separately, so they exist once per user.
    """
    q, k, v = _by_head(query.item, heads), _by_head(key.item, heads), _by_head(value.item, heads)
    scale = q.shape[-1] ** -0.5
    scores = q @ k.mT  # [N, heads, q_g, m]
    if query.user is None or key.user is None or value.user is None:
        return Tokens(None, _from_heads((scores * scale).softmax(-1) @ v))
    own_q, own_k, own_v = (_by_head(t, heads) for t in (query.user, key.user, value.user))
    users = own_k.shape[2]
    weights = (torch.cat([q @ own_k.mT, scores], -1) * scale).softmax(-1)  # [N, heads, q_g, n + m]
    item = weights[..., :users] @ own_v + weights[..., users:] @ v
    user = (own_q @ own_k.mT * scale).softmax(-1) @ own_v
    return Tokens(_from_heads(user), _from_heads(item))


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[t, N, D] -> [N, heads, t, D/heads]."""
    return cut_last(x, heads).permute(1, 2, 0, 3)


def _from_heads(x: Tensor) -> Tensor:
    """[N, heads, t, D/heads] -> [t, N, D]."""
    return x.permute(2, 0, 1, 3).flatten(2)


class SeparatedResidual(nn.Module):
    """Residual for mixing that changes the token counts (UG-Sep, separated residual).

    UG-masked attention with the mixed rows' network output as query and the layer's input tokens as key and value.
    The paper leaves heads and sharing open: here one head, with projections shared by all tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, mixed: Tokens, inputs: Tokens) -> Tokens:
        """Return what to add to ``mixed`` [c_u, N, D], [c_g, N, D], read from ``inputs`` [n, N, D], [m, N, D]."""
        query, key = mixed.map(self.query), inputs.map(self.key)
        return ug_attention(query, key, inputs.map(self.value), heads=1)
