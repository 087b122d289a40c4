"""Decide the precision of each weight of a graph."""

from __future__ import annotations

from dataclasses import dataclass

from quant.graph.gemms import Weight, matching
from quant.policy import BITS, Policy, Precision


@dataclass(frozen=True)
class WeightPlan:
    """The precision of a weight, and the reason if it is not int8."""

    precision: Precision
    reason: str = ""

    @property
    def bits(self) -> int:
        """Bits per element as stored."""
        return BITS[self.precision]


def plan_of(weight: Weight, side: str, policy: Policy, keep_float: tuple[str, ...]) -> WeightPlan:
    """Return the plan of a weight: the graph and the model may rule int8 out, else the policy decides."""
    if weight.refusal:
        return WeightPlan("fp32", weight.refusal)
    if pattern := matching(weight.name, keep_float):
        return WeightPlan("fp32", f"the model keeps '{pattern}' float")
    if weight.kind == "table" and not policy.tables:
        return WeightPlan("fp32", "embedding table; the policy leaves tables float")
    precision, reason = policy.precision_of(side, weight.name)
    return WeightPlan(precision, "" if precision == "int8" else reason or f"policy default {precision}")
