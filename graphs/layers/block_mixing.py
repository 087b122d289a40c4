"""UniMixing (arXiv 2604.00590): learned mixing of blocks by doubly stochastic matrices, masked after Sinkhorn.

The tokens are one vector cut into N_b blocks of width B. Local mixing multiplies each block by its own B x B matrix,
global mixing combines whole blocks by an N_b x N_b matrix. No matrix depends on the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphs.layers.sinkhorn import sinkhorn, symmetrised
from graphs.layers.tokenwise import cut_last
from graphs.layers.ugsep import Tokens


class FixedBlockMixing(nn.Module):
    """Mixing with precomputed matrices, used for inference. Tokens [n, N, D], [m, N, D] in and out.

    Args:
        local: one B x B matrix per block, [N_b, B, B].
        across: W_G [N_b, N_b], output block by input block, already doubly stochastic.
        user_blocks: number of user blocks, which come first; 0 when unmasked.
    """

    def __init__(self, local: Tensor, across: Tensor, user_blocks: int) -> None:
        super().__init__()
        u = user_blocks
        self.user_local = nn.Parameter(local[:u]) if u else None  # [u, B, B]
        self.item_local = nn.Parameter(local[u:])
        # Input blocks by output blocks, so that data is the left operand of every product.
        self.user_to_user = nn.Parameter(across[:u, :u].T.contiguous()) if u else None
        self.user_to_item = nn.Parameter(across[u:, :u].T.contiguous()) if u else None
        self.item_to_item = nn.Parameter(across[u:, u:].T.contiguous())

    def forward(self, x: Tokens) -> Tokens:
        """Return the mixed tokens, without the residual."""
        width = x.item.shape[-1]
        return mix_blocks(
            x,
            (self.user_local, self.item_local),
            (self.user_to_user, self.user_to_item, self.item_to_item),
            width // self.item_local.shape[-1],
        )


def mix_blocks(
    x: Tokens,
    local: tuple[Tensor | None, Tensor],
    across: tuple[Tensor | None, Tensor | None, Tensor],
    blocks_per_token: int,
) -> Tokens:
    """Mix [n, N, D] and [m, N, D]; W_G[user, item] is absent, so user blocks are computed from user blocks only.

    Args:
        x: tokens of D = blocks_per_token * B.
        local: matrices of the user and of the item blocks, [blocks, B, B].
        across: user to user, user to item, item to item, each [input blocks, output blocks].
        blocks_per_token: D / B.
    """
    item = _local(x.item, local[1], blocks_per_token)  # [N, B, m_b]
    mixed = item @ across[2]
    if x.user is None or local[0] is None or across[0] is None or across[1] is None:
        return Tokens(None, _to_tokens(mixed, blocks_per_token))
    user = _local(x.user, local[0], blocks_per_token)  # [N, B, n_b]
    mixed = user @ across[1] + mixed
    return Tokens(_to_tokens(user @ across[0], blocks_per_token), _to_tokens(mixed, blocks_per_token))


def _local(x: Tensor, weight: Tensor, blocks_per_token: int) -> Tensor:
    """h_i = x_i W_i: [t, N, D] -> [N, B, t * D/B]."""
    blocks = cut_last(x, blocks_per_token).transpose(1, 2).flatten(0, 1)  # [t * D/B, N, B]
    return torch.matmul(blocks, weight).permute(1, 2, 0)


def _to_tokens(x: Tensor, blocks_per_token: int) -> Tensor:
    """[N, B, t * D/B] -> [t, N, D]."""
    return cut_last(x, x.shape[-1] // blocks_per_token).permute(2, 0, 3, 1).flatten(2)


class BlockMixing(nn.Module):
    """Mixing for training: free matrices, symmetrised, then Sinkhorn at a temperature.

    With ``lite`` (UniMixing-Lite), local matrices are weighted sums of ``bases`` shared ones, and the global one
    has rank ``rank``.

    Args:
        blocks: (user blocks, item blocks); no user blocks when unmasked.
        width: block width B.
        blocks_per_token: D / B.
        steps: number of Sinkhorn steps.
        lite: None, or (bases, rank).
    """

    def __init__(
        self, blocks: tuple[int, int], width: int, blocks_per_token: int, steps: int, lite: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.user_blocks = blocks[0]
        self.blocks_per_token = blocks_per_token
        self.steps = steps
        count = sum(blocks)
        self.local = LiteLocal(count, width, lite[0]) if lite else FreeMatrices(count, width)
        self.across = LiteGlobal(count, lite[1]) if lite else FreeMatrices(1, count)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the doubly stochastic local [N_b, B, B] and global [N_b, N_b] matrices, not masked."""
        local, across = (
            sinkhorn(symmetrised(scores()), self.temperature, self.steps) for scores in (self.local, self.across)
        )
        return local, across[0]

    def forward(self, x: Tokens) -> Tokens:
        """Return the mixed tokens [n, N, D], [m, N, D], without the residual."""
        local, across = self.matrices()
        u = self.user_blocks
        if not u:
            return mix_blocks(x, (None, local), (None, None, across.T), self.blocks_per_token)
        # Mask after Sinkhorn: a doubly stochastic matrix with W_G[user, item] = 0 has W_G[item, user] = 0 too.
        kept = (across[:u, :u].T, across[u:, :u].T, across[u:, u:].T)
        return mix_blocks(x, (local[:u], local[u:]), kept, self.blocks_per_token)

    def fold(self) -> FixedBlockMixing:
        """Return the same mixing with the final matrices precomputed."""
        with torch.no_grad():
            return FixedBlockMixing(*self.matrices(), self.user_blocks)


class FreeMatrices(nn.Module):
    """``count`` free score matrices [count, size, size]."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, size, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise scores of order 1."""
        nn.init.normal_(self.weight)

    def forward(self) -> Tensor:
        """Return the scores."""
        return self.weight


class LiteLocal(nn.Module):
    """Score matrices of all blocks as weighted sums of shared ones: sum_l w_l^i Z_l, [N_b, B, B]."""

    def __init__(self, blocks: int, width: int, bases: int) -> None:
        super().__init__()
        self.bases = nn.Parameter(torch.empty(bases, width, width))
        self.weights = nn.Parameter(torch.empty(blocks, bases))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise so that the sums are of order 1."""
        nn.init.normal_(self.bases)
        nn.init.normal_(self.weights, std=self.weights.shape[1] ** -0.5)

    def forward(self) -> Tensor:
        """Return the scores."""
        return (self.weights @ self.bases.flatten(1)).reshape(-1, *self.bases.shape[1:])


class LiteGlobal(nn.Module):
    """A low-rank score matrix A B, A [N_b, r] and B [r, N_b]; returned as [1, N_b, N_b]."""

    def __init__(self, blocks: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(blocks, rank))
        self.right = nn.Parameter(torch.empty(rank, blocks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise so that the product is of order 1."""
        nn.init.normal_(self.left)
        nn.init.normal_(self.right, std=self.left.shape[1] ** -0.5)

    def forward(self) -> Tensor:
        """Return the scores."""
        return (self.left @ self.right).unsqueeze(0)
