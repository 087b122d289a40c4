"""Sparse models, exported and routed: the same numbers, and every expert of the checkpoint in one of both files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from engines.build.graph_exports import export_graphs
from engines.build.source_model import fresh_feeds, of_model, split_source_model
from export.lowering import LoweredGraph, lower_for_cpu
from graphs.base.names import GraphSide
from graphs.split.split import Subgraph
from tests.graphs.model_laws import make_config, make_model
from tests.suites import slow_but

SIDES: tuple[GraphSide, ...] = ("user", "item")


def expert_slices(lowered: LoweredGraph) -> dict[str, tuple[str, ...]]:
    """Return the routed weights: name in the checkpoint -> its slices, one per token and expert.

    Columns that only user tokens would read are left out of an item graph (TokenMixer-Large's masked revert); the
    name then says which ones stayed.
    """
    named = {name.split(".columns")[0]: parts for name, parts in lowered.parts.items()}
    return {name: parts for name, parts in named.items() if ".experts." in name and name.endswith("weight")}


def elements(file: Path) -> dict[str, int]:
    return {i.name: math.prod(i.dims) for i in onnx.load(file, load_external_data=False).graph.initializer}


@pytest.mark.parametrize(
    "variant", slow_but({"rankmixer-moe"}, ["rankmixer-moe", "tokenmixer-large-moe", "zenith-pp"])
)
def test_a_sparse_model_routed(variant: str, tmp_path: Path) -> None:
    model = make_model(make_config(variant, "2:1", layers=1))
    source_model = of_model(model)
    split_model = split_source_model(source_model)
    onnx_files = export_graphs(variant, source_model, split_model, tmp_path)
    feeds = fresh_feeds(source_model, split_model, users=3, candidates=17, seed=5)
    routed = {s: lower_for_cpu(onnx_files[s], tmp_path / f"{s}.routed.onnx", min_expert_elements=0) for s in SIDES}
    for side in SIDES:
        subgraph: Subgraph = getattr(split_model, side)
        session = ort.InferenceSession(str(routed[side].path), providers=["CPUExecutionProvider"])
        got = session.run(list(subgraph.outputs), {k: v.numpy() for k, v in feeds[side].items()})
        for value, wanted in zip(got, subgraph(feeds[side]).values(), strict=True):
            # FP32 sums of tens of terms in another order, on values up to a few tens.
            np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-5, atol=1e-5)
    experts = make_config(variant, "2:1").experts  # type: ignore[attr-defined]  # all three have the field
    routed_experts = experts - 1 if variant == "tokenmixer-large-moe" else experts  # one is shared by all rows
    stored = {n: p for n, p in model.named_parameters() if ".experts." in n and n.endswith("weight")}
    found = {name: (parts, routed[side]) for side in SIDES for name, parts in expert_slices(routed[side]).items()}
    assert set(found) == set(stored)
    for name, (parts, lowered) in found.items():
        assert len(set(parts)) == stored[name].shape[0] * routed_experts, name
        sizes = elements(lowered.path)
        if name in lowered.parts:
            assert sum(sizes[part] for part in parts) == stored[name].numel(), name
