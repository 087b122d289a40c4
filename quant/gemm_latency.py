"""Time one MatMul on ONNX Runtime in each precision, in the form the engine step would run it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.lowering import lower_for_cpu
from quant.calibrate import session
from quant.numerics import absmax_scale, quantize
from quant.policy import Precision
from quant.rewrite import scale_of_matmul

# (weight shape, rows, precision) -> milliseconds
MeasureGemm = Callable[[tuple[int, ...], int, Precision], float]

_COLD_BYTES = 64 << 20  # more than the last-level cache share of a core: weights are read from memory, as in a model
_SECONDS = 0.15


def onnxruntime_latency(shape: tuple[int, ...], rows: int, precision: Precision, threads: int = 1) -> float:
    """Return the median milliseconds of x @ W on ONNX Runtime's CPU provider.

    ``shape`` is [K, N] with x [rows, K], or [T, K, N] with x [T, rows, K]. Several weights of the shape are
    multiplied in turn, so that none stays in the cache. int8 runs as the CPU engine does, with int8 activations
    (w8a8-dynamic); fp16 weights are folded to FP32 when the graph is loaded, so they cost what fp32 costs.

    Raises:
        UgsepError: onnxruntime is missing.
    """
    int8 = precision == "int8"
    size = int(np.prod(shape)) * (1 if int8 else 4)
    copies = int(np.clip(-(-_COLD_BYTES // size), 1, 64))
    x_shape = (*shape[:-2], rows, shape[-2])
    with tempfile.TemporaryDirectory() as folder:
        source, lowered = Path(folder) / "gemm.onnx", Path(folder) / "lowered.onnx"
        onnx.save(_gemms(shape, x_shape, copies, int8), source)
        lower_for_cpu(source, lowered, "matmul-nbits" if int8 else "keep")
        run = session(onnx.load(lowered, load_external_data=False), lowered, threads)
        x = {"x": np.random.default_rng(0).standard_normal(x_shape, dtype=np.float32)}
        names = [f"y{i}" for i in range(copies)]
        run(names, x)
        times: list[float] = []
        until = time.perf_counter() + _SECONDS
        while len(times) < 5 or time.perf_counter() < until:
            start = time.perf_counter()
            run(names, x)
            times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3 / copies


def _gemms(shape: tuple[int, ...], x_shape: tuple[int, ...], copies: int, int8: bool) -> onnx.ModelProto:
    first = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    nodes, constants = [], []
    for i in range(copies):
        weight = np.roll(first, i)  # equal weights would be merged
        name = f"w{i}"
        if int8:
            scale, axis, block = scale_of_matmul(absmax_scale(weight), shape[-2])
            constants.append(numpy_helper.from_array(quantize(weight, absmax_scale(weight)), name))
            constants.append(numpy_helper.from_array(np.ascontiguousarray(scale), f"{name}.scale"))
            node = helper.make_node("DequantizeLinear", [name, f"{name}.scale"], [f"{name}.float"], axis=axis)
            if block:
                node.attribute.append(helper.make_attribute("block_size", block))
            nodes.append(node)
            name = f"{name}.float"
        else:
            constants.append(numpy_helper.from_array(weight, name))
        nodes.append(helper.make_node("MatMul", ["x", name], [f"y{i}"]))
    y_shape = (*x_shape[:-1], shape[-1])
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, y_shape) for i in range(copies)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
