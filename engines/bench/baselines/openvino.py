"""The whole model in OpenVINO on a CPU: FP32, BF16 or FP16 hint, and compressed int8 weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engines.backends.contract import Array
from engines.backends.graph_io import graph_io
from engines.backends.openvino.library import core, import_openvino
from engines.bench.baselines.contract import BaselineSource, Bind, Run
from export.io import read_graph
from graphs.base.errors import UgsepError


def hinted(precision: str, source: BaselineSource, threads: int) -> Bind:
    """Run the exported FP32 graph with a precision hint: f32, bf16 or f16.

    Raises:
        UgsepError: openvino is missing, or this CPU does not compute in the precision of the hint.
    """
    return _compiled(source.onnx, threads, precision)


def compressed_int8(source: BaselineSource, threads: int) -> Bind:
    """Run the graph with compressed int8 weights, one scale per channel.

    Weights are rounded with our ``absmax``, the same rule as OpenVINO's INT8_SYM mode; OpenVINO quantizes
    activations at run time by default.
    """
    file = source.folder / "openvino-int8" / "full.w8a32.onnx"
    if not file.exists():
        from quant.schemes.schemes import Absmax
        from quant.weights import quantize_side

        quantize_side(source.onnx, file.parent, scheme=Absmax())
    return _compiled(file, threads, "f32")


def _compiled(path: Path, threads: int, precision: str) -> Bind:
    ov = import_openvino()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    compiled = core().compile_model(str(path), "CPU", settings)
    runs_in = compiled.get_property("INFERENCE_PRECISION_HINT")
    if runs_in != getattr(ov.Type, precision):
        raise UgsepError(f"this CPU computes in {runs_in.to_string()}, not in {precision}")
    inputs, outputs = graph_io(read_graph(path))
    request = compiled.create_infer_request()

    def bind(feeds: Mapping[str, Array]) -> Run:
        given = {spec.name: feeds[spec.name] for spec in inputs}

        def run() -> dict[str, Array]:
            results = request.infer(given, share_inputs=True)
            return {spec.name: np.array(results[i]) for i, spec in enumerate(outputs)}

        return run

    return bind
