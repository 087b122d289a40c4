"""One graph to stream: the plan of each weight, and its slot in the data files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.metadata import keep_float_patterns, side_of
from export.streamed import StreamedGraph
from export.weights.lazy_weights import Constant, Weights
from quant.graph.gemms import Weight, graph_of, weights_of
from quant.policy import Policy, policy_document
from quant.schemes.schemes import SchemeConfig, scheme_name
from quant.streaming import layout
from quant.streaming.layout import Slot, lay_out
from quant.weight_plan import WeightPlan, plan_of


@dataclass(frozen=True)
class StreamJob:
    """One graph to stream; ``key`` identifies everything its bytes depend on."""

    side: str
    key: str
    model: ir.Model
    constants: Mapping[str, Constant]
    weights: Weights
    scheme: SchemeConfig
    policy: Policy
    plans: Mapping[Weight, WeightPlan]
    slots: tuple[Slot, ...]
    blob_bytes: int
    scale_bytes: int

    @property
    def blob(self) -> str:
        """Name of the file of int8 and FP16 constants that both views share."""
        return f"{self.side}.int8.data"

    def floats(self) -> list[ir.Value]:
        """Return the large initializers that stay float."""
        encoded = {slot.name for slot in self.slots}
        return [v for n, v in self.model.graph.initializers.items() if n in self.constants and n not in encoded]


def job_of(graph: StreamedGraph, weights: Weights, source: str, scheme: SchemeConfig, policy: Policy) -> StreamJob:
    """Plan a graph's weights and lay out its data files; ``source`` identifies the checkpoint."""
    model = graph_of(graph.model)
    name = Path("streamed.onnx")
    side, keep = side_of(model, name), keep_float_patterns(model, name)
    plans = {w: plan_of(w, side, policy, keep) for w in weights_of(model)}
    slots, *sizes = lay_out({w: plan.bits for w, plan in plans.items() if plan.bits < 32}, policy.block)
    digest = hashlib.sha256(graph.model.SerializeToString(deterministic=True)).hexdigest()
    # Not the policy itself: a rule for the other side does not change these bytes.
    planned = [(slot.name, slot.bits, slot.block) for slot in slots]
    key = _hash([source, digest, scheme_name(scheme), asdict(scheme), planned, layout.CHUNK_BYTES])
    return StreamJob(side, key, model, graph.constants, weights, scheme, policy, plans, slots, *sizes)


def run_key(jobs: Sequence[StreamJob], policy: Policy) -> str:
    """Return the key of a run over several graphs."""
    return _hash([[job.key for job in jobs], policy_document(policy)])


def _hash(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
