"""Parameters and FLOPs by formula from sizes alone, without building the model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Count:
    """Cost of a layer or of a side.

    ``parameters``: number of weights without embedding tables. ``flops``: of matrix products, per row, two per
    multiply-add, all experts included. ``idle_flops``: those of experts a row is not routed to.
    """

    parameters: int = 0
    flops: int = 0
    idle_flops: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.parameters + other.parameters, self.flops + other.flops, self.idle_flops + other.idle_flops)

    def __mul__(self, times: int) -> Count:
        return Count(self.parameters * times, self.flops * times, self.idle_flops * times)

    def again(self) -> Count:
        """Return the cost of running the layer once more with the same weights."""
        return Count(0, self.flops, self.idle_flops)

    @property
    def active_flops(self) -> int:
        """FLOPs per row if only the chosen experts are computed."""
        return self.flops - self.idle_flops


@dataclass(frozen=True)
class Counts:
    """Cost of both sides: ``user`` per user row, ``item`` per candidate row including read-out and heads."""

    user: Count = field(default_factory=Count)
    item: Count = field(default_factory=Count)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.user + other.user, self.item + other.item)

    @property
    def parameters(self) -> int:
        """Number of weights of the model without embedding tables."""
        return self.user.parameters + self.item.parameters

    @property
    def reusable_share(self) -> float:
        """Share of the active FLOPs of a row that runs once per request."""
        return self.user.active_flops / (self.user.active_flops + self.item.active_flops)


def product(rows: int, inputs: int, outputs: int) -> Count:
    """[rows, inputs] @ [inputs, outputs] of two activations: no parameters."""
    return Count(0, 2 * rows * inputs * outputs)


def linear(inputs: int, outputs: int, bias: bool = True, rows: int = 1) -> Count:
    """One weight [inputs, outputs] shared by ``rows`` tokens."""
    return Count((inputs + bias) * outputs, 2 * rows * inputs * outputs)


def tokenwise_linear(tokens: int, inputs: int, outputs: int, bias: bool = True) -> Count:
    """One weight [inputs, outputs] per feature token."""
    return linear(inputs, outputs, bias) * tokens


def tokenwise_ffn(tokens: int, inputs: int, hidden: int, outputs: int) -> Count:
    """Two linear layers per feature token."""
    return tokenwise_linear(tokens, inputs, hidden) + tokenwise_linear(tokens, hidden, outputs)


def tokenwise_swiglu(tokens: int, width: int, hidden: int) -> Count:
    """Gate, up and down projections per feature token."""
    return tokenwise_linear(tokens, width, hidden) * 2 + tokenwise_linear(tokens, hidden, width)


def swiglu_experts(tokens: int, width: int, hidden: int, count: int, active: int) -> Count:
    """``count`` SwiGLU experts of ``hidden`` units per feature token and their router; each row uses ``active``."""
    inner = tokenwise_linear(tokens, width, count * hidden) * 2
    inner += tokenwise_linear(tokens, count * hidden, width, bias=False)
    router = tokenwise_linear(tokens, width, count, bias=False)
    return inner + router + Count(idle_flops=inner.flops * (count - active) // count)


def gelu_experts(tokens: int, inputs: int, hidden: int, outputs: int, count: int) -> Count:
    """``count`` GELU experts of ``hidden`` units per feature token and the inference router.

    A ReLU router learns how many to leave idle, so all count as active.
    """
    inner = tokenwise_linear(tokens, inputs, count * hidden)
    inner += tokenwise_linear(tokens, count * hidden, outputs, bias=False)
    inner += tokenwise_linear(tokens, count, outputs, bias=False)  # output biases, weighted by the gates
    return inner + tokenwise_linear(tokens, inputs, count, bias=False)


def attention(queries: int, keys: int, width: int) -> Count:
    """Scores and weighted sum of ``queries`` over ``keys``, all heads together."""
    return product(queries, width, keys) + product(queries, keys, width)


def norm(width: int, bias: bool = False) -> Count:
    """A gain, and with ``bias`` a shift, over the last axis."""
    return Count(width * (1 + bias))


def compensation(user_tokens: int, item_tokens: int, width: int) -> Counts:
    """Projection of the user rows and its spread over the item rows, all on the user side."""
    cost = linear(width, width, rows=user_tokens) + product(item_tokens, user_tokens, width)
    return Counts(user=cost + Count(item_tokens * user_tokens))


def heads(tasks: int, width: int, tower: int) -> Counts:
    """One tower per task, on the item side."""
    return Counts(item=(linear(width, tower) + linear(tower, 1)) * tasks)
