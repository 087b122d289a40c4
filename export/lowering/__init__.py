"""Graph rewrites that fit an exported graph to one target runtime: ``TARGETS`` lists the passes of each, in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from export.activations import activation_ranges
from export.lowering.embedding import GATHER_INT8_ROWS
from export.lowering.feature_tokens import UNSTACK_TOKENS
from export.lowering.half_state import HALVE_STATE
from export.lowering.matmul_integer import MULTIPLY_INT8_ROWS
from export.lowering.matmul_integer_static import MULTIPLY_CALIBRATED_ROWS
from export.lowering.matmul_nbits import FUSE_INT8_GEMMS
from export.lowering.moe import MIN_EXPERT_ELEMENTS, ROUTE_EXPERTS
from export.lowering.one_position import MULTIPLY_POSITIONS
from export.lowering.passes import REMOVE_UNUSED, LoweredGraph, Lowering, Pass, lower, read_inferred, run_passes
from export.lowering.rms_norm import FUSE_RMS_NORMS
from export.lowering.tensorrt import (
    FOLD_INT8,
    MERGE_SIBLINGS,
    NAME_GEMMS,
    PLUGIN_NAMESPACE,
    PLUGIN_OP,
    SEPARATE_TRANSPOSES,
    TO_FP16,
    USE_PLUGIN,
)
from export.lowering.users import BROADCAST_USER
from graphs.base.errors import UgsepError

__all__ = [
    "PLUGIN_NAMESPACE", "PLUGIN_OP", "Int8Gemms", "LoweredGraph", "TensorRTWeights", "lower_for_cpu",
    "lower_for_gpu", "lower_for_one_user", "lower_for_tensorrt", "read_inferred",
]  # fmt: skip

#: What a CPU does with int8 GEMM weights: leave DequantizeLinear + MatMul for the runtime to fold to float once, or
#: also quantize the activations while running: inside com.microsoft.MatMulNBits (fastest for a few rows), or in the
#: graph before com.microsoft.MatMulIntegerToFloat (fastest for many), with a scale per row or the calibrated one.
Int8Gemms = Literal["keep", "matmul-nbits", "integer-rows", "calibrated-rows"]
#: "int8": as quantized. "folded": int8 weights as FP16 constants, the twin that sizes are compared with.
#: "fp16": an FP32-typed graph made FP16-typed.
TensorRTWeights = Literal["int8", "folded", "fp16"]

_SPARSE_2D = (
    GATHER_INT8_ROWS, ROUTE_EXPERTS, REMOVE_UNUSED, UNSTACK_TOKENS, REMOVE_UNUSED, MULTIPLY_POSITIONS, REMOVE_UNUSED,
)  # fmt: skip

TARGETS: Mapping[str, tuple[Pass, ...]] = {
    "cpu keep": _SPARSE_2D,
    "cpu matmul-nbits": (*_SPARSE_2D, FUSE_INT8_GEMMS, FUSE_RMS_NORMS),
    "cpu integer-rows": (*_SPARSE_2D, MULTIPLY_INT8_ROWS, FUSE_RMS_NORMS),
    "cpu calibrated-rows": (*_SPARSE_2D, MULTIPLY_CALIBRATED_ROWS, MULTIPLY_INT8_ROWS, FUSE_RMS_NORMS),
    "one user": (BROADCAST_USER,),
    "gpu": (GATHER_INT8_ROWS,),
    "tensorrt int8": (MERGE_SIBLINGS, SEPARATE_TRANSPOSES, NAME_GEMMS, USE_PLUGIN),
    "tensorrt folded": (FOLD_INT8, NAME_GEMMS),
    "tensorrt fp16": (TO_FP16, NAME_GEMMS),
}


def lower_for_cpu(
    source: Path,
    destination: Path,
    int8_gemms: Int8Gemms = "keep",
    min_token_elements: int = 0,
    min_expert_elements: int = MIN_EXPERT_ELEMENTS,
    half_state: bool = False,
) -> LoweredGraph:
    """Write ``source`` for a CPU runtime: one 2-D GEMM per feature token, chosen experts only, int8 tables as int8.

    Weights [T, K, N] with K * N below ``min_token_elements`` stay stacked; mixtures whose experts have fewer than
    ``min_expert_elements`` weights per feature token stay dense. Weights are streamed to ``<destination>.data``, so
    graphs beyond 2 GB pass. With ``calibrated-rows``, inputs of weights without a stamped range have a scale per row.
    With ``half_state``, float32 state leaves a user graph and enters an item graph as float16.

    Raises:
        UgsepError: ``source`` is missing or not ONNX, has no ranges where ``calibrated-rows`` needs them, or no state
            where it shall be halved.
    """
    lowering = Lowering(read_inferred(source), source, min_token_elements, min_expert_elements)
    if int8_gemms == "calibrated-rows":
        ranges = activation_ranges(lowering.model, source)
        if ranges is None:
            raise UgsepError(f"'{source}' has no ranges of activations; quantize it again, with a calibration")
        lowering.ranges = ranges
    passes = TARGETS[f"cpu {int8_gemms}"]
    return lower(lowering, (*passes, HALVE_STATE) if half_state else passes, destination)


def lower_for_gpu(source: Path, destination: Path) -> LoweredGraph:
    """Write ``source`` for a GPU runtime: GEMMs of feature tokens stay batched, int8 tables are gathered as int8.

    Raises:
        UgsepError: ``source`` is missing or not ONNX.
    """
    return lower(Lowering(read_inferred(source), source), TARGETS["gpu"], destination)


def lower_for_tensorrt(
    source: Path, destination: Path, weights: TensorRTWeights = "int8", plugin: frozenset[str] = frozenset()
) -> LoweredGraph:
    """Write ``source`` for TensorRT, strongly typed; the int8 weights named in ``plugin`` run in our own kernel.

    ``parts`` of the result maps an int8 weight to the merged one that holds it. GEMMs and the nodes that dequantize
    their weights are named after the weight (``export.names``), so that compiled layers can be traced back.

    Raises:
        UgsepError: ``source`` is missing or not ONNX, or a value does not fit FP16.
    """
    lowering = Lowering(read_inferred(source), source, plugin=plugin if weights == "int8" else frozenset())
    return lower(lowering, TARGETS[f"tensorrt {weights}"], destination)


def lower_for_one_user(source: Path, destination: Path) -> bool:
    """Write the variant of an item graph that takes one user's state, [1, ...], and no ``user_index``.

    ``source`` is a lowered file of the same folder; its weights are shared, not copied. Returns False, and writes
    nothing, if the graph gathers no state.

    Raises:
        UgsepError: ``source`` is missing or not ONNX.
    """
    lowering = Lowering(read_inferred(source), source)
    run_passes(lowering, TARGETS["one user"])
    if not lowering.refusal:
        lowering.save(destination, copy_weights=False)
    return not lowering.refusal
