"""Layers shared by all architectures. Token tensors are token-major, ``[T, N, D]``.

Token-major keeps the rows of a feature token contiguous, so the GEMMs of all tokens are one batched MatMul over
``[T, N, K]`` without a transpose, the form that TensorRT fuses with int8 weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def cut_last(x: Tensor, count: int) -> Tensor:
    """Cut the last axis into ``count`` equal chunks; [..., count * w] -> [..., count, w]."""
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count)


class RMSNorm(nn.RMSNorm):
    """torch's root-mean-square norm over the last axis, gain [width]; eps 1e-6 instead of the dtype's smallest."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__(width, eps)


class TokenwiseLinear(nn.Module):
    """One linear layer per feature token: ``[T, N, K] -> [T, N, M]``, weight [T, K, M], bias [T, 1, M]."""

    def __init__(self, tokens: int, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(tokens, 1, outputs)) if bias else None
        self.gain = gain
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise weights uniformly with variance ``gain² / (3 K)``, as nn.Linear does, and biases with zero."""
        bound = self.gain / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's rows times its weight, [T, N, M]."""
        y = torch.matmul(x, self.weight)  # [T, N, M]
        return y if self.bias is None else y + self.bias


class TokenwiseSwiGLU(nn.Module):
    """``W_down(SiLU(W_gate x) * (W_up x))`` with separate weights per feature token; [T, N, D] -> [T, N, D]."""

    def __init__(self, tokens: int, width: int, hidden: int, down_gain: float = 1.0) -> None:
        super().__init__()
        self.gate = TokenwiseLinear(tokens, width, hidden)
        self.up = TokenwiseLinear(tokens, width, hidden)
        self.down = TokenwiseLinear(tokens, hidden, width, gain=down_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated transform of each token, [T, N, D]."""
        y: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return y


class TokenwiseFFN(nn.Module):
    """``W2 GELU(W1 x + b1) + b2`` with separate weights per feature token; [T, N, K] -> [T, N, M]."""

    def __init__(self, tokens: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.up = TokenwiseLinear(tokens, inputs, hidden)
        self.down = TokenwiseLinear(tokens, hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's rows through its network, [T, N, M]."""
        y: Tensor = self.down(functional.gelu(self.up(x)))
        return y


class Head(nn.Module):
    """One task's tower: [N, D] -> logits [N]; the last layer, ``logit``, is never quantized to int8."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.logit = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N]."""
        y: Tensor = self.logit(functional.gelu(self.hidden(x)))  # [N, 1]
        return y.squeeze(-1)
