"""Sparse mixtures of experts, one set of experts and one router per feature token.

The experts of a token are slices of one wide network: expert j owns hidden units [j h, (j + 1) h). All of them are
computed and each slice's hidden units scaled by its gate, so that a gate of zero removes an expert exactly, rows stay
independent and every weight is visible in the graph. Computing only the chosen experts is a rewrite of the exported
graph.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphs.base.errors import UgsepError
from graphs.layers.tokenwise import TokenwiseLinear, TokenwiseSwiGLU, cut_last


def gate_hidden(hidden: Tensor, gates: Tensor) -> Tensor:
    """Scale every expert's hidden units by its gate; [T, N, E*h], [T, N, E] -> [T, N, E*h]."""
    return (cut_last(hidden, gates.shape[-1]) * gates.unsqueeze(-1)).flatten(-2)


def top_k_gates(probabilities: Tensor, k: int) -> Tensor:
    """Keep the k largest values of the last axis and zero the rest; [T, N, E] -> [T, N, E]."""
    values, indices = probabilities.topk(k, -1)  # [T, N, k]
    numbers = torch.arange(probabilities.shape[-1], device=probabilities.device)
    gates = torch.zeros_like(probabilities)
    # One pass per choice: runtimes are several times slower at summing over a middle axis, [T, N, k, E].
    for j in range(k):
        gates = torch.where(indices[..., j, None] == numbers, values[..., j, None], gates)
    return gates


def check_experts(experts: int, active: int, names: tuple[str, str]) -> None:
    """Reject more active experts than experts; ``names`` are the two config fields.

    Raises:
        UgsepError: a negative number, a single expert, or k > E.
    """
    if experts < 0 or experts == 1:
        raise UgsepError(f"{names[0]} is {experts}; give 0 for a dense network or at least 2")
    if experts and not 1 <= active <= experts:
        raise UgsepError(f"{names[1]} is {active}, but {names[0]} is {experts}; {names[1]} = {min(2, experts)} works")


class SwiGLUExperts(nn.Module):
    """``sum_j gate_j W_down_j (SiLU(W_gate_j x) * (W_up_j x))`` for every token; x [T, N, D], gates [T, N, E]."""

    def __init__(self, tokens: int, experts: int, width: int, hidden: int, down_gain: float = 1.0) -> None:
        super().__init__()
        self.gate = TokenwiseLinear(tokens, width, experts * hidden)
        self.up = TokenwiseLinear(tokens, width, experts * hidden)
        # Experts have no output bias: the shared expert's suffices for the sum.
        self.down = TokenwiseLinear(tokens, experts * hidden, width, bias=False, gain=down_gain)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return the gated sum of the experts, [T, N, D]."""
        hidden = functional.silu(self.gate(x)) * self.up(x)  # [T, N, E*h]
        y: Tensor = self.down(gate_hidden(hidden, gates))
        return y


class GELUExperts(nn.Module):
    """``sum_j gate_j (W2_j GELU(W1_j x + b1_j) + b2_j)`` for every token; x [T, N, K], gates [T, N, E]."""

    def __init__(self, tokens: int, experts: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.up = TokenwiseLinear(tokens, inputs, experts * hidden)
        self.down = TokenwiseLinear(tokens, experts * hidden, outputs, bias=False)
        self.shift = nn.Parameter(torch.empty(tokens, experts, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the output biases at zero."""
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return the gated sum of the experts, [T, N, D]."""
        y: Tensor = self.down(gate_hidden(functional.gelu(self.up(x)), gates))
        return y + torch.matmul(gates, self.shift)


class SoftmaxRouter(nn.Module):
    """Softmax router per feature token: gates [T, N, E] with the k largest probabilities, zero elsewhere.

    In training it sets ``auxiliary``: ``balance_weight`` * E * sum_j f_j P_j (f: share of rows routed to expert
    j, P: its mean probability; 1 when balanced) plus ``z_weight`` * mean logsumexp(logits)^2, means over tokens.
    Probabilities are not renormalised over the chosen experts [open in 2602.06563 and 2601.21285].
    """

    def __init__(
        self, tokens: int, width: int, experts: int, active: int, balance_weight: float = 0.0, z_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.router = TokenwiseLinear(tokens, width, experts, bias=False)
        self.active = active
        self.balance_weight = balance_weight
        self.z_weight = z_weight
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the gates [T, N, E] of x [T, N, D]."""
        logits = self.router(x)
        probabilities = logits.softmax(-1)
        gates = top_k_gates(probabilities, self.active)
        if self.training:
            routed = (gates > 0).to(gates.dtype).mean(1) / self.active  # [T, E], sums to 1
            balance = gates.shape[-1] * (routed * probabilities.mean(1)).sum(-1).mean()
            z = logits.logsumexp(-1).square().mean()
            self.auxiliary = self.balance_weight * balance + self.z_weight * z
        return gates


class SparseSwiGLU(nn.Module):
    """Shared expert plus the top-k routed experts: ``Shared(x) + scale * sum g_j Expert_j(x)``; [T, N, D].

    Sparse MoE per feature token, as in TokenMixer-Large (2602.06563) and Zenith++ (2601.21285).
    """

    def __init__(
        self,
        router: SoftmaxRouter,
        experts: SwiGLUExperts,
        shared: TokenwiseSwiGLU,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the transform of each token, [T, N, D]."""
        y: Tensor = self.shared(x) + self.experts(x, self.scale * self.router(x))
        return y


class ReLUSparseFFN(nn.Module):
    """RankMixer's sparse MoE: gates ReLU(h(x)), dense training and sparse inference (2507.15551).

    It has two routers. Training weights the experts by the mean of both gates [open: how they are combined], so that
    every expert keeps learning. The L1 penalty ``l1_weight`` * mean_rows sum_j gate_j applies only to the inference
    router, the only one used for inference.
    """

    def __init__(self, tokens: int, experts: int, inputs: int, hidden: int, outputs: int, l1_weight: float) -> None:
        super().__init__()
        self.router = TokenwiseLinear(tokens, inputs, experts, bias=False)
        self.training_router = TokenwiseLinear(tokens, inputs, experts, bias=False)
        self.experts = GELUExperts(tokens, experts, inputs, hidden, outputs)
        self.l1_weight = l1_weight
        self.auxiliary: Tensor | None = None

    def fold(self) -> ReLUSparseFFN:
        """Return the layer without its training router, weights shared."""
        folded = copy.copy(self)
        folded._modules = {name: child for name, child in self._modules.items() if name != "training_router"}
        folded.training = False
        return folded

    def forward(self, x: Tensor) -> Tensor:
        """Return the transform of each token, [T, N, K] -> [T, N, M]."""
        gates = functional.relu(self.router(x))  # [T, N, E]
        if self.training:
            self.auxiliary = self.l1_weight * gates.sum(-1).mean()
            gates = (gates + functional.relu(self.training_router(x))) / 2
        y: Tensor = self.experts(x, gates)
        return y
