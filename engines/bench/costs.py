"""The FLOPs and weight bytes of a call, from the split's costs, to relate times to the hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.backends.built_engine import BuiltEngine
from graphs.base.errors import UgsepError

if TYPE_CHECKING:
    from graphs.split.split import Split

#: Width in bits at which GEMMs read a weight, by precision.
BITS: Mapping[str, int] = {
    "fp32": 32, "fp16": 16, "bf16": 16, "w8a16": 8, "w8a32": 8, "w8a8-dynamic": 8, "w8a8-static": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """FLOPs per row and FP32 weight bytes (without embedding tables) of both sides."""

    user_flops: int
    item_flops: int
    user_weight_bytes: int
    item_weight_bytes: int

    def flops(self, variant: str, candidates: int) -> float:
        """Return the FLOPs of one call."""
        user, item = self.user_flops, candidates * self.item_flops
        work = {"whole": candidates * user + item, "cold": user + item, "user": user}
        return float(work.get(variant, item))

    def weight_bytes(self, variant: str, bits: Mapping[str, int]) -> float:
        """Return the weight bytes a call has to read, at ``bits`` per weight by side."""
        user, item = self.user_weight_bytes * bits["user"] / 32, self.item_weight_bytes * bits["item"] / 32
        return {"whole": user + item, "cold": user + item, "user": user}.get(variant, item)

    def limit(self, candidates: int) -> float:
        """Return the FLOP limit on the speed-up of a cold request over the whole model."""
        return self.flops("whole", candidates) / self.flops("cold", candidates)


def costs_of_split(split: Split) -> Costs:
    """Return the costs of a model that was just split."""
    user, item = split.user_cost, split.item_cost
    return Costs(user.flops, item.flops, user.weight_bytes, item.weight_bytes)


def costs_of_report(report: Mapping[str, Any]) -> Costs:
    """Return the costs in a bundle's ``report.json``.

    Raises:
        UgsepError: they are missing.
    """
    try:
        user, item = report["split"]["user"], report["split"]["item"]
        return Costs(
            int(user["flops"]), int(item["flops"]), int(user["weight_bytes"]), int(item["weight_bytes"])
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UgsepError(f"report.json has no costs per side ({error}); build the bundle again") from error


def weight_bits(built: BuiltEngine) -> int:
    """Return the width at which an engine reads its weights: 32 if int8 was folded to float at load time."""
    folded = any(weight.status in ("folded-to-float", "dequantized-each-run") for weight in built.weights)
    return 32 if folded else BITS[built.precision]
