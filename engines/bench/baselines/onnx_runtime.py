"""The whole model in ONNX Runtime on a CPU: FP32, the runtime's own dynamic int8, and int8 with calibrated scales."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from engines.backends.contract import Array
from engines.backends.engine_spec import Option
from engines.backends.onnxruntime.session import import_onnxruntime, int8_settings, plain_settings, start_session
from engines.bench.baselines.contract import BaselineSource, Bind, Run
from graphs.base.errors import UgsepError

_CALIBRATION_REQUESTS, _CALIBRATION_CANDIDATES, _SEED = 8, 256, 11
_ONE_MESSAGE_BYTES = 1 << 30  # protobuf messages are limited to 2 GiB; larger models need external data


def exported(source: BaselineSource, threads: int) -> Bind:
    """Run the exported FP32 graph with all of the runtime's optimizations."""
    return _session(source.onnx, threads)


def lowered(source: BaselineSource, threads: int) -> Bind:
    """Run the FP32 graph lowered to one GEMM per feature token, as our own engines are."""
    return _session(_lowered(source), threads)


def dynamic_int8(source: BaselineSource, threads: int) -> Bind:
    """Run the exported graph after ``quantize_dynamic``: int8 weights, activations quantized at run time.

    Scales are per channel. Graphs with weights stacked per feature token get one scale per weight [T, K, N], because
    the runtime's kernel rejects per-channel zero points there.
    """
    return _session(_quantized(source, source.onnx, "full.int8.onnx", not _has_stacked_weights(source.onnx)), threads)


def lowered_dynamic_int8(source: BaselineSource, threads: int) -> Bind:
    """Run the graph with one GEMM per feature token after ``quantize_dynamic``, with per-channel scales."""
    return _session(_quantized(source, _lowered(source), "full.lowered.int8.onnx", True), threads)


def static_int8(source: BaselineSource, threads: int) -> Bind:
    """Run the graph as our ``w8a8-static`` engines are: calibrated scales, one GEMM per feature token, biases fused.

    The runtime's own ``quantize_static`` leaves biases to another node. Scales are calibrated on random requests, as
    those that are timed.
    """
    return _session(_calibrated(source), threads, int8_settings())


def _session(path: Path, threads: int, settings: Mapping[str, Option] | None = None) -> Bind:
    session = start_session(import_onnxruntime(), path, {**plain_settings(threads), **(settings or {})})
    names = [output.name for output in session.get_outputs()]
    inputs = [i.name for i in session.get_inputs()]

    def bind(feeds: Mapping[str, Array]) -> Run:
        given = {name: feeds[name] for name in inputs}

        def run() -> dict[str, Array]:
            return dict(zip(names, session.run(names, given), strict=True))

        return run

    return bind


def _lowered(source: BaselineSource) -> Path:
    file = source.folder / "full.lowered.onnx"
    if not file.exists():
        from export.lowering import lower_for_cpu

        lower_for_cpu(source.onnx, file)
    return file


def _calibrated(source: BaselineSource) -> Path:
    file = source.folder / "onnxruntime-int8-static" / "full.lowered.onnx"
    if not file.exists():
        from export.lowering import lower_for_cpu
        from quant.calibration.calibrate import calibrate
        from quant.calibration.statistics import Calibration
        from quant.requests.spec import request_spec
        from quant.requests.synthetic import synthetic_requests, table_rows
        from quant.schemes.schemes import Absmax
        from quant.weights import quantize_side

        whole = source.onnx
        spec, vocabulary = request_spec(whole, whole), max(table_rows(whole, whole), 1)
        requests = synthetic_requests(spec, _CALIBRATION_REQUESTS, _CALIBRATION_CANDIDATES, vocabulary, _SEED)
        # As if it were both sides of a split: the user side sees one row of a request, the item side all of them.
        seen = calibrate(whole, whole, requests, synthetic=True)
        rows = Calibration(seen.item, seen.item, seen.samples)
        quantize_side(whole, file.parent, scheme=Absmax(), calibration=rows)
        lower_for_cpu(file.with_name("full.w8a32.onnx"), file, "calibrated-rows")
    return file


def _quantized(source: BaselineSource, graph: Path, name: str, per_channel: bool) -> Path:
    file = source.folder / name
    if not file.exists():
        try:
            from onnxruntime.quantization import QuantType, quantize_dynamic
        except ImportError as error:
            raise UgsepError("needs onnxruntime; pip install 'ugsep[cpu]'") from error
        data = graph.with_name(f"{graph.name}.data")
        large = data.exists() and data.stat().st_size > _ONE_MESSAGE_BYTES
        # Silence the advice to run a pre-processing step: it would not change the exported graph.
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            quantize_dynamic(
                graph, file, per_channel=per_channel, weight_type=QuantType.QInt8, use_external_data_format=large
            )
        finally:
            logging.disable(before)
    return file


def _has_stacked_weights(path: Path) -> bool:
    from export.io import read_graph

    graph = read_graph(path).graph
    read = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
    return any(len(tensor.dims) == 3 and tensor.name in read for tensor in graph.initializer)
