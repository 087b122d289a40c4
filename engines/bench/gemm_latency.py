"""The GEMM timer of ``quant search``: one GEMM per engine, on any backend that runs on this machine."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from onnx import helper

from engines.backends.build import build_engine
from engines.backends.contract import Backend, Runner
from engines.backends.engine_spec import BuildSpec, Option, Profile, Rows
from engines.backends.table import backend_names, find_backend
from engines.measure.gemm_graph import gemm_graph
from engines.measure.interleave import samples_in_turn
from graphs.base.errors import UgsepError
from graphs.base.scratch import scratch_folder
from quant.policy import Policy, Precision
from quant.schemes.schemes import Absmax
from quant.search.gemm_latency import MeasureGemm
from quant.weights import quantize_side

_COLD_BYTES = 64 << 20  # more than a core's share of the last-level cache: weights come from memory, as in a model
_MOST_COPIES = 64
_SECONDS = 0.3
_LEAST_ROUNDS = 5
#: The engine precisions that mix int8, fp16 and fp32 weights, fastest first.
_MIXED = ("w8a8-dynamic", "w8a16", "w8a32")
#: Backends that widen FP16 weights on load and then run FP32 kernels: measured differences would only be memory
#: layout and noise, and neither is a reason for FP16.
_WIDEN_FP16 = frozenset({"onnxruntime"})


def gemm_timer(backend: str, threads: int = 1) -> MeasureGemm:
    """Return a function that times x @ W on a backend, with W stored in each precision a policy can name.

    W is [K, N] with x [rows, K], or [T, K, N] with x [T, rows, K]. Times are medians in milliseconds, interleaved
    over the precisions; each call runs several weights of the shape, so that none stays in cache. If a backend widens
    FP16 weights on load, FP16 gets the time of FP32.

    Raises:
        UgsepError: an unknown backend, or one that cannot build and run engines on this machine.
    """
    module = find_backend(backend)
    here = module.probe()
    if not (here.can_build and here.can_run):
        others = [name for name in backend_names() if (p := find_backend(name).probe()).can_build and p.can_run]
        raise UgsepError(
            f"backend '{backend}' cannot run on this machine, so it cannot be measured ({here.reason}); "
            f"search on a machine that can run it, or with --backend {' or '.join(others)}"
        )
    return partial(_measure, module, threads, backend in _WIDEN_FP16)


def _measure(
    module: Backend, threads: int, widens: bool, shape: tuple[int, ...], rows: int
) -> Mapping[Precision, float]:
    copies = min(_MOST_COPIES, -(-_COLD_BYTES // math.prod(shape)))
    feeds = {"x": np.random.default_rng(0).standard_normal((rows, *_row_shape(shape)), dtype=np.float32)}
    with scratch_folder(".ugsep-gemm-") as scratch, ExitStack() as loaded:
        source = scratch / "item.onnx"
        _write_gemms(shape, copies, source)
        runners: dict[Precision, Runner] = {}
        for precision in get_args(Precision):
            if precision == "fp16" and widens:
                continue
            try:
                runner = _engine(module, threads, source, precision, rows)
            except UgsepError:
                if precision == "fp32":
                    raise
                continue
            runners[precision] = loaded.enter_context(closing(runner))
        times = _times({p: partial(runner.infer, feeds) for p, runner in runners.items()})
    if widens:
        times["fp16"] = times["fp32"]
    return {p: times[p] / copies if p in times else math.inf for p in get_args(Precision)}


def _row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1]  # [K], or [T, K]


def _engine(module: Backend, threads: int, source: Path, precision: Precision, rows: int) -> Runner:
    folder = source.parent / precision
    quantize_side(source, folder, scheme=Absmax(), policy=Policy(default=precision))
    mixed = next(p for p in _MIXED if p in module.ONNX_VARIANT)
    options: dict[str, Option] = {"threads": threads} if "threads" in module.OPTIONS else {}
    view = folder / f"item.{module.ONNX_VARIANT[mixed]}.onnx"
    profile = Profile(Rows(), Rows(1, rows, rows))
    out = folder / "engine"
    out.mkdir()
    return module.load(out, build_engine(module, BuildSpec("item", view, mixed, (profile,), options), out, _ignore))


def _ignore(note: str) -> None:
    """Discard build notes: one GEMM builds quickly."""


def _times(calls: Mapping[Precision, Callable[[], object]]) -> dict[Precision, float]:
    for call in calls.values():
        call()
    samples = samples_in_turn(calls, _LEAST_ROUNDS, sys.maxsize, _SECONDS * len(calls))
    return {p: float(np.median(s)) for p, s in samples.items()}


def _write_gemms(shape: tuple[int, ...], copies: int, path: Path) -> None:
    """Write a graph that multiplies its input [rows, K] or [rows, T, K] with each of ``copies`` weights."""
    first = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    model = gemm_graph([("x", np.roll(first, i)) for i in range(copies)])  # the runtime would merge equal weights
    helper.set_model_props(model, {"ugsep.side": "item"})
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
