"""All baselines by name: a new one is a function ``(BaselineSource, threads) -> Bind`` and one row here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from engines.bench.baselines import onnx_runtime, openvino, pytorch
from engines.bench.baselines.contract import Baseline
from graphs.base.errors import UgsepError, nearest

BASELINES: Mapping[str, Baseline] = {
    "pytorch": Baseline("fp32", "eager, inference mode", pytorch.eager),
    "torch-compile": Baseline("fp32", "static shapes, frozen weights", pytorch.compiled),
    "onnxruntime": Baseline("fp32", "the graph as exported, all optimizations", onnx_runtime.exported),
    "onnxruntime-lowered": Baseline("fp32", "one GEMM per feature token, like our engines", onnx_runtime.lowered),
    "onnxruntime-int8": Baseline("w8a8-dynamic", "quantize_dynamic of the exported graph", onnx_runtime.dynamic_int8),
    "onnxruntime-int8-lowered": Baseline(
        "w8a8-dynamic", "quantize_dynamic per channel, one GEMM per feature token", onnx_runtime.lowered_dynamic_int8
    ),
    "onnxruntime-int8-static": Baseline(
        "w8a8-static", "calibrated scales, one GEMM per feature token, like our engines", onnx_runtime.static_int8
    ),
    "openvino-fp32": Baseline("fp32", "latency mode, f32", partial(openvino.hinted, "f32")),
    "openvino-bf16": Baseline("bf16", "latency mode, bf16", partial(openvino.hinted, "bf16")),
    "openvino-fp16": Baseline("fp16", "latency mode, f16", partial(openvino.hinted, "f16")),
    "openvino-int8": Baseline(
        "w8a8-dynamic", "compressed int8 weights, OpenVINO's dynamic quantization", openvino.compressed_int8
    ),
}


def choose_baselines(names: str) -> tuple[str, ...]:
    """Return baseline names from ``all``, ``none`` or a comma-separated list.

    Raises:
        UgsepError: an unknown name; the message has the nearest one.
    """
    if names == "all":
        return tuple(BASELINES)
    chosen = () if names == "none" else tuple(n.strip() for n in names.split(",") if n.strip())
    for name in chosen:
        if name not in BASELINES:
            raise UgsepError(f"unknown baseline '{name}'{nearest(name, BASELINES)}")
    return chosen
