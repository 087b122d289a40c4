"""The GEMM timer of ``quant search``: on any backend that runs on this machine, else with the reason."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from engines.backends.onnxruntime.session import start_session
from engines.backends.table import find_backend
from engines.bench import gemm_latency
from engines.bench.gemm_latency import gemm_timer
from export.lowering import lower_for_cpu
from graphs.base.errors import UgsepError
from quant.policy import Policy
from quant.schemes.schemes import Absmax
from quant.weights import quantize_side


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(64, 48), (3, 32, 48)])
def test_every_precision_of_a_gemm_is_timed(
    monkeypatch: pytest.MonkeyPatch, backend: str, shape: tuple[int, ...]
) -> None:
    if not find_backend(backend).probe().can_run:
        pytest.skip(f"{backend} is not installed")
    monkeypatch.setattr(gemm_latency, "_SECONDS", 0.01)
    monkeypatch.setattr(gemm_latency, "_COLD_BYTES", 1 << 14)
    found = gemm_timer(backend, 1)(shape, 5)
    assert set(found) == {"int8", "fp16", "fp32"}
    # 300k multiplications: microseconds to a few milliseconds on any machine
    assert all(1e-5 < ms < 1e3 for ms in found.values() if math.isfinite(ms))
    assert math.isfinite(found["fp32"])
    assert math.isfinite(found["int8"])


@pytest.mark.parametrize("shape", [(64, 48), (3, 32, 48)])
def test_fp16_is_no_faster_where_the_runtime_widens_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """ONNX Runtime runs the same kernels as for FP32, so a measured difference would be noise."""
    monkeypatch.setattr(gemm_latency, "_SECONDS", 0.01)
    monkeypatch.setattr(gemm_latency, "_COLD_BYTES", 1 << 14)
    found = gemm_timer("onnxruntime", 1)(shape, 5)
    assert found["fp16"] == found["fp32"]
    source, kernels = tmp_path / "item.onnx", []
    gemm_latency._write_gemms(shape, 2, source)
    for precision in ("fp16", "fp32"):
        quantize_side(source, tmp_path / precision, scheme=Absmax(), policy=Policy(default=precision))
        lowered = lower_for_cpu(tmp_path / precision / "item.w8a32.onnx", tmp_path / precision / "low.onnx")
        start_session(ort, lowered.path, {"graph_optimization_level": "all"}, tmp_path / precision / "run.onnx")
        graph = onnx.load(tmp_path / precision / "run.onnx").graph
        kernels.append(sorted(node.op_type for node in graph.node))
        assert all(tensor.data_type != onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    assert kernels[0] == kernels[1]


@pytest.mark.slow  # a weight larger than a core's caches
def test_a_large_weight_is_faster_in_int8_at_one_row() -> None:
    # a quarter of the bytes, 2.4 to 3 times as fast when measured; 16 MB of float32 exceed a core's caches
    found = gemm_timer("onnxruntime", 1)((2048, 2048), 1)
    assert found["int8"] < 0.8 * found["fp32"]


def test_a_backend_that_cannot_run_here_says_why_and_who_can() -> None:
    for name in ("tensorrt", "tensorrt-rtx"):
        here = find_backend(name).probe()
        if here.can_run:
            pytest.skip(f"{name} runs here")
        with pytest.raises(
            UgsepError, match=f"backend '{name}' cannot run on this machine, so it cannot be measured"
        ) as error:
            gemm_timer(name, 1)
        assert here.reason in str(error.value)
        assert "onnxruntime" in str(error.value)
    with pytest.raises(UgsepError, match="unknown backend 'onnxruntim', did you mean 'onnxruntime'"):
        gemm_timer("onnxruntim", 1)
