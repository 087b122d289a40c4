"""What PyTorch computes of extreme integers, where it computes anything at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from graphs.split.split import Subgraph

__all__ = ["Surviving", "reference"]

aten = torch.ops.aten
_DIVISIONS = (aten.div.Tensor_mode, aten.div.Scalar_mode)


def reference(subgraph: Subgraph, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a PyTorch graph, also where a division of integers would end the process.

    ``torch.div(a, -1, rounding_mode="trunc")`` of the least integer is SIGFPE in PyTorch. Here it is that integer,
    which the negation wraps to and every other division by -1 gives.

    Args:
        subgraph: the graph.
        given: its inputs, [N, ...].
    """
    if not any(node.target in _DIVISIONS for node in subgraph.module.graph.nodes):
        return subgraph(dict(given))
    with torch.no_grad():
        values = Surviving(subgraph.module).run(*[given[name] for name in subgraph.inputs])
    return dict(zip(subgraph.outputs, values, strict=True))


class Surviving(fx.Interpreter):
    """Runs a graph, with the least integer as its own quotient by -1."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an op, a truncated division of integers without the pair that ends the process."""
        if target in _DIVISIONS and kwargs.get("rounding_mode") == "trunc":
            dividend, divisor = (torch.as_tensor(a) for a in args)
            kind = torch.result_type(*args)
            if not kind.is_floating_point and kind.is_signed:
                dividend, divisor = dividend.to(kind), divisor.to(kind)
                fatal = (dividend == torch.iinfo(kind).min) & (divisor == -1)
                target, args = aten.div.Tensor_mode, (dividend, torch.where(fatal, 1, divisor))
        return super().call_function(target, args, kwargs)
