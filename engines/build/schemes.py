"""The quantization schemes side by side on one model: what each does to the scores, the bytes and the latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.backends.contract import Array, BuiltEngine, Runner
from engines.backends.table import find_backend
from engines.compile.compile import EnginePlan, compile_engine, load_built
from engines.measure.interleave import interleaved
from engines.measure.peak import measure_peak
from engines.recipes.recipe import Recipe
from engines.serve.ranker import Ranker
from engines.verify import checks
from engines.verify.agreement import EXACT_DB
from engines.verify.latency import ROUNDS
from engines.verify.scores import Scores, engine_scores
from export.metadata import GraphSide
from graphs.base.names import USER_INDEX
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.calibration.statistics import Calibration
from quant.policy import policy_from
from quant.requests.readers import Request
from quant.schemes.schemes import CONFIGS, scheme_from
from quant.weight_table import QuantTable
from quant.weights import quantize_side

SIDES: tuple[GraphSide, GraphSide] = ("user", "item")
#: int8 weights, GEMMs in FP32: what is left is the scheme's own error, without that of int8 activations.
EXACT = tuple(EnginePlan(side, "onnxruntime", "w8a32") for side in SIDES)
PLAIN = tuple(EnginePlan(side, "onnxruntime", "fp32") for side in SIDES)


@dataclass(frozen=True)
class SchemeRow:
    """One scheme on one model; figures over tasks are the worst.

    ``weights_db`` is the SQNR of the logits with int8 weights and FP32 GEMMs, ``served_db`` that of the engines that
    serve, which may quantize activations too; both AUC changes likewise, None without labels. ``weight_bytes`` counts
    both graphs' listed weights with scales, ``user_gemm_bytes`` those that the user graph multiplies with, each read
    once per user; ``seconds`` is the time to quantize them. Latencies are p50 in ms.
    """

    scheme: str
    weights_db: float
    served_db: float
    kendall_tau: float
    weights_auc_change: float | None
    served_auc_change: float | None
    weight_bytes: int
    user_gemm_bytes: int
    user_ms: float
    item_ms: float
    seconds: float

    @property
    def user_gb_s(self) -> float:
        """Bytes of weights that the user engine reads per second, in GB/s; at one row that is what bounds it."""
        return self.user_gemm_bytes / self.user_ms / 1e6


@dataclass(frozen=True)
class SchemeTable:
    """The rows of one model, the first of them FP32; ``chosen`` is the scheme of its recipe.

    Latencies are those of one user and of ``candidates`` items; ``rows_scored`` candidates were scored. ``copy_gb_s``
    is what the machine copies with as many threads, bytes read and bytes written.
    """

    model: str
    chosen: str
    rows: tuple[SchemeRow, ...]
    requests: int
    rows_scored: int
    candidates: int
    threads: int
    copy_gb_s: float
    precision: Mapping[str, str]
    synthetic: bool

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return {**asdict(self), "rows": [{**asdict(r), "user_gb_s": r.user_gb_s} for r in self.rows]}


def compare_schemes(
    model: str,
    recipe: Recipe,
    onnx: Mapping[GraphSide, Path],
    plans: Sequence[EnginePlan],
    calibration: Calibration,
    requests: Sequence[Request],
    reference: Scores,
    scratch: Path,
    *,
    schemes: Sequence[str] = tuple(CONFIGS),
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> SchemeTable:
    """Quantize a model with every scheme under its recipe's policy, score the requests, and time the engines.

    Args:
        model: its name.
        recipe: policy, threads and request sizes; the options of its own scheme are used for that scheme.
        onnx: the FP32 graphs.
        plans: the user and the item engine that serve.
        calibration: with Gram matrices where gptq is asked for.
        requests: held out; AUC is compared where they carry labels.
        reference: FP32 scores of the requests.
        scratch: an empty folder for graphs and engines.
        schemes: names, in the order of the rows.
        cache: of built engines.
        progress: told about every step.

    Raises:
        UgsepError: an unknown scheme, statistics that a scheme lacks, or an engine that cannot be built here.
    """
    policy, own = policy_from(recipe.quantization.policy), recipe.quantization
    largest = max(requests, key=lambda r: r.candidates)
    exact_auc = checks.task_auc(requests, reference)
    size = max(recipe.serving.candidates)
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, SchemeRow] = {}
    opened: dict[tuple[Path, EnginePlan], tuple[BuiltEngine, Runner]] = {}

    def pair(plans: Sequence[EnginePlan], graphs: Path) -> Ranker:
        for plan in plans:
            if (graphs, plan) not in opened:
                opened[graphs, plan] = _engine(recipe, plan, onnx, graphs, cache, progress)
        (user_built, user), (item_built, item) = (opened[graphs, plan] for plan in plans)
        return Ranker(user, item, user_built, item_built)

    def judge(ranker: Ranker, step: str) -> tuple[float, float, float | None]:
        scores = engine_scores(ranker, requests, step, progress)
        agreement = checks.parity(reference, scores).values()
        auc = checks.task_auc(requests, scores)
        changes = [auc[task] - before for task, before in exact_auc.items()]
        worst = max(changes, key=abs) if changes else None
        return min(a.sqnr_db for a in agreement), min(a.kendall_tau for a in agreement), worst

    try:
        plain = pair(PLAIN, scratch / "fp32")
        calls |= _calls("fp32", plain, largest, size)
        for name in schemes:
            folder = scratch / name
            started = time.perf_counter()
            config = scheme_from(name, own.options if name == own.scheme else None)
            tables = [
                quantize_side(
                    onnx[s], folder, scheme=config, calibration=calibration, policy=policy, progress=progress
                )
                for s in SIDES
            ]
            seconds = time.perf_counter() - started
            weights_db, _, weights_auc = judge(pair(EXACT, folder), f"{name}, FP32 GEMMs")
            serving = pair(plans, folder)
            served_db, tau, served_auc = judge(serving, f"{name}, as served")
            calls |= _calls(name, serving, largest, size)
            stored = (sum(t.quantized_bytes for t in tables), _gemm_bytes(tables[0], "quantized_bytes"))
            whole = (sum(t.fp32_bytes for t in tables), _gemm_bytes(tables[0], "fp32_bytes"))
            quality = (weights_db, served_db, tau, weights_auc, served_auc)
            found[name] = SchemeRow(name, *quality, *stored, 0.0, 0.0, seconds)
        progress(Progress("latency", 0, 1, "all schemes in turn"))
        times = interleaved(calls, ROUNDS)
    finally:
        for _, runner in opened.values():
            runner.close()
    found = {"fp32": SchemeRow("fp32", EXACT_DB, EXACT_DB, 1.0, None, None, *whole, 0.0, 0.0, 0.0), **found}
    rows = [replace(r, user_ms=times[f"{n} user"].p50, item_ms=times[f"{n} item"].p50) for n, r in found.items()]
    precision: dict[str, str] = {plan.side: f"{plan.backend} {plan.precision}" for plan in plans}
    scored = sum(r.candidates for r in requests)
    threads, synthetic = recipe.serving.threads, calibration.synthetic
    copied = measure_peak(threads).copy_gb_s
    return SchemeTable(
        model, own.scheme, tuple(rows), len(requests), scored, size, threads, copied, precision, synthetic
    )


def _gemm_bytes(table: QuantTable, column: Literal["fp32_bytes", "quantized_bytes"]) -> int:
    return sum(getattr(row, column) for row in table.rows if row.kind == "matmul")


def _engine(
    recipe: Recipe,
    plan: EnginePlan,
    onnx: Mapping[GraphSide, Path],
    graphs: Path,
    cache: Path | None,
    progress: ProgressCallback,
) -> tuple[BuiltEngine, Runner]:
    """Build and load an engine: from the FP32 graph, or from the view of it in the folder ``graphs``."""
    variant = find_backend(plan.backend).ONNX_VARIANT[plan.precision]
    source = onnx[plan.side] if variant == "fp32" else graphs / f"{plan.side}.onnx"
    folder = graphs / plan.directory
    folder.mkdir(parents=True, exist_ok=True)
    built = compile_engine(recipe, plan, source, folder, cache, progress)
    return built, load_built(built, folder)


def _calls(name: str, ranker: Ranker, request: Request, candidates: int) -> dict[str, Callable[[], object]]:
    """Return the timed calls of a pair: its user engine on one user, its item engine on so many candidates."""
    feeds: dict[str, Array] = {k: np.resize(v, (candidates, *v.shape[1:])) for k, v in request.items.items()}
    feeds |= ranker.user_runner.infer(request.user)
    if ranker.takes_index:
        feeds[USER_INDEX] = np.zeros(candidates, np.int64)
    return {
        f"{name} user": lambda: ranker.user_runner.infer(request.user),
        f"{name} item": lambda: ranker.item_runner.infer(feeds),
    }
