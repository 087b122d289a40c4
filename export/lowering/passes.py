"""ONNX to ONNX: rewrite a canonical graph into the form a target runs fastest, same inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
)

from export.io import check_file, read_model
from export.lowering.embedding import gather_int8_rows
from export.lowering.feature_tokens import unstack_tokens
from export.lowering.matmul_integer import multiply_int8_rows
from export.lowering.matmul_nbits import fuse_int8_gemms
from export.lowering.moe import MIN_EXPERT_ELEMENTS, route_experts
from export.lowering.users import broadcast_user

#: What the CPU lowering does with int8 GEMM weights: leave DequantizeLinear + MatMul for the runtime to fold
#: to float once, or also quantize the activations while running: inside com.microsoft.MatMulNBits (fastest for a few
#: rows), or row by row in the graph before com.microsoft.MatMulIntegerToFloat (fastest for many).
Int8Gemms = Literal["keep", "matmul-nbits", "integer-rows"]


@dataclass(frozen=True)
class LoweredGraph:
    """What a lowering did: for each rewritten weight the initializers that now hold it, and how it is read.

    ``parts``: weight name -> names of its lowered initializers, in token order (one where it was not cut).
    ``fused``: weights (by original name) now inside one fused int8 node. ``gathered``: int8 tables read by row.
    """

    path: Path
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fused: frozenset[str] = frozenset()
    gathered: frozenset[str] = frozenset()


def lower_for_cpu(
    source: Path,
    destination: Path,
    int8_gemms: Int8Gemms = "keep",
    min_token_elements: int = 0,
    min_expert_elements: int = MIN_EXPERT_ELEMENTS,
) -> LoweredGraph:
    """Write ``source`` for a CPU runtime: one 2-D GEMM per token, chosen experts only, int8 tables gathered as int8.

    Weights [T, K, N] with K * N below ``min_token_elements`` stay stacked; mixtures whose experts have fewer than
    ``min_expert_elements`` weights per token stay dense. ``destination`` and
    ``<destination>.data`` (external data) are written; weights are streamed, so graphs beyond 2 GB pass.

    Raises:
        UgsepError: ``source`` is missing or is no ONNX file.
    """
    model = read_inferred(source)
    graph = model.graph
    gathered = gather_int8_rows(graph)
    parts = route_experts(graph, min_expert_elements)
    model = RemoveUnusedNodesPass()(model).model
    parts |= unstack_tokens(graph, min_token_elements)
    model = RemoveUnusedNodesPass()(model).model
    fused: frozenset[str] = frozenset()
    if int8_gemms != "keep":
        whole = {part: name for name, names in parts.items() for part in names}
        rewrite = fuse_int8_gemms if int8_gemms == "matmul-nbits" else multiply_int8_rows
        fused = frozenset(whole.get(name, name) for name in rewrite(graph))
        model.opset_imports["com.microsoft"] = 1
    write_model(model, destination)
    return LoweredGraph(destination, parts, fused, gathered)


def lower_for_one_user(source: Path, destination: Path) -> bool:
    """Write the form of an item graph that takes one user's state, [1, ...], and no ``user_index``, beside it.

    ``source`` is a lowered file of the same folder; its weights are shared, not copied. Returns False, and writes
    nothing, where the graph gathers no state.

    Raises:
        UgsepError: ``source`` is missing or is no ONNX file.
    """
    model = read_inferred(source)
    if not broadcast_user(model.graph):
        return False
    _save(model, destination, None)
    return True


def lower_for_gpu(source: Path, destination: Path) -> LoweredGraph:
    """Write ``source`` for a GPU runtime: per-token GEMMs stay batched, int8 tables are gathered as int8.

    Raises:
        UgsepError: ``source`` is missing or is no ONNX file.
    """
    model = read_inferred(source)
    gathered = gather_int8_rows(model.graph)
    write_model(model, destination)
    return LoweredGraph(destination, gathered=gathered)


def read_inferred(source: Path) -> ir.Model:
    """Read an ONNX file with shapes inferred and constants lifted to initializers; weights stay on disk.

    Raises:
        UgsepError: the file is missing or cannot be parsed.
    """
    model = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(read_model(source)).model
    return ShapeInferencePass()(model).model


def write_model(model: ir.Model, destination: Path) -> None:
    """Clean up and write a model with its weights beside it, then run the ONNX checker on the file.

    Raises:
        UgsepError: the checker refuses the graph.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    _save(model, destination, f"{destination.name}.data")


def _save(model: ir.Model, destination: Path, data: str | None) -> None:
    """Write a model; weights go to the file ``data``, or stay in the files they are in where it is None."""
    model = RemoveUnusedNodesPass()(model).model
    model = RemoveUnusedOpsetsPass()(model).model
    ir.save(model, destination, external_data=data, size_threshold_bytes=1024)
    check_file(destination, infer_shapes=False)
