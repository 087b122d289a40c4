"""Compare quantization schemes on one model by scores, bytes and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array, Runner
from engines.backends.table import find_backend
from engines.compile.compile import EnginePlan, compile_engine, load_built
from engines.measure.copy_rate import measure_copy_gb_s
from engines.measure.interleave import interleaved
from engines.recipes.recipe import Recipe
from engines.serve.ranker import Ranker
from engines.verify import checks
from engines.verify.agreement import EXACT_DB
from engines.verify.latency import ROUNDS
from engines.verify.scores import Scores, engine_scores
from graphs.base.names import SIDES, USER_INDEX, GraphSide
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.calibration.statistics import Calibration
from quant.policy import policy_from
from quant.requests.spec import Request
from quant.schemes.schemes import CONFIGS, scheme_from
from quant.weight_table import QuantTable
from quant.weights import quantize_side

#: int8 weights and FP32 GEMMs isolate the error of the scheme from that of int8 activations.
EXACT = tuple(EnginePlan(side, "onnxruntime", "w8a32") for side in SIDES)
PLAIN = tuple(EnginePlan(side, "onnxruntime", "fp32") for side in SIDES)


@dataclass(frozen=True)
class SchemeScores:
    """The scores and sizes of one scheme on one model, with the worst figures of all tasks.

    ``weights_db`` is the SQNR of the logits with int8 weights and FP32 GEMMs, ``served_db`` that of the serving
    engines, which may also quantize activations; likewise for the AUC changes, None without labels. ``weight_bytes``
    counts the listed weights and scales of both graphs, ``user_gemm_bytes`` the GEMM weights of the user graph, each
    read once per user. ``seconds`` is the time to quantize.
    """

    scheme: str
    weights_db: float
    served_db: float
    kendall_tau: float
    weights_auc_change: float | None
    served_auc_change: float | None
    weight_bytes: int
    user_gemm_bytes: int
    seconds: float


@dataclass(frozen=True)
class SchemeRow(SchemeScores):
    """The scores of a scheme and the latencies of its user and item engine, p50 in ms."""

    user_ms: float
    item_ms: float

    @property
    def user_gb_s(self) -> float:
        """Weight bandwidth of the user engine in GB/s, which bounds its latency at one row."""
        return self.user_gemm_bytes / self.user_ms / 1e6


@dataclass(frozen=True)
class SchemeTable:
    """The rows of one model, FP32 first; ``chosen`` is the scheme of its recipe.

    Latencies are for one user and for ``candidates`` items; ``rows_scored`` candidates were scored. ``copy_gb_s`` is
    the copy bandwidth of the machine with the same number of threads, counting reads and writes.
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


@dataclass(frozen=True)
class Comparison:
    """The inputs shared by all schemes of a comparison.

    ``recipe`` sets policy, threads and request sizes, and the options of its own scheme; ``onnx`` are the FP32
    graphs, ``plans`` the serving user and item engine. ``calibration`` needs Gram matrices for gptq; ``requests``
    are held out, ``reference`` their FP32 scores. ``scratch`` is an empty folder for graphs and engines.
    """

    recipe: Recipe
    onnx: Mapping[GraphSide, Path]
    plans: Sequence[EnginePlan]
    calibration: Calibration
    requests: Sequence[Request]
    reference: Scores
    scratch: Path
    cache: Path | None = None
    progress: ProgressCallback = silent


@dataclass(frozen=True)
class _Scored:
    """A scheme with its scores and loaded engines, ready to be timed."""

    scores: SchemeScores
    serving: Ranker
    fp32_bytes: tuple[int, int]


def compare_schemes(model: str, setup: Comparison, schemes: Sequence[str] = tuple(CONFIGS)) -> SchemeTable:
    """Quantize the model named ``model`` with each of ``schemes``, score the requests and time the engines.

    Raises:
        UgsepError: an unknown scheme, missing statistics, or an engine that cannot be built on this machine.
    """
    recipe = setup.recipe
    size = max(recipe.serving.candidates)
    with ExitStack() as loaded:
        plain = _pair(_load(setup, PLAIN, setup.scratch / "fp32", loaded), PLAIN)
        scored = [_score(setup, name, loaded) for name in schemes]
        (weight_bytes, gemm_bytes), *_ = (s.fp32_bytes for s in scored)
        fp32 = SchemeScores(
            scheme="fp32",
            weights_db=EXACT_DB,
            served_db=EXACT_DB,
            kendall_tau=1.0,
            weights_auc_change=None,
            served_auc_change=None,
            weight_bytes=weight_bytes,
            user_gemm_bytes=gemm_bytes,
            seconds=0.0,
        )
        setup.progress(Progress("latency", 0, 1, "all schemes, interleaved"))
        rankers = {"fp32": plain, **{s.scores.scheme: s.serving for s in scored}}
        largest = max(setup.requests, key=lambda r: r.candidates)
        calls = {(n, side): call for n, r in rankers.items() for side, call in _calls(r, largest, size).items()}
        times = interleaved(calls, ROUNDS)
    rows = tuple(
        SchemeRow(**vars(s), user_ms=times[s.scheme, "user"].p50, item_ms=times[s.scheme, "item"].p50)
        for s in (fp32, *(s.scores for s in scored))
    )
    return SchemeTable(
        model=model,
        chosen=recipe.quantization.scheme,
        rows=rows,
        requests=len(setup.requests),
        rows_scored=sum(r.candidates for r in setup.requests),
        candidates=size,
        threads=recipe.serving.threads,
        copy_gb_s=measure_copy_gb_s(recipe.serving.threads),
        precision={plan.side: f"{plan.backend} {plan.precision}" for plan in setup.plans},
        synthetic=setup.calibration.synthetic,
    )


def _score(setup: Comparison, name: str, loaded: ExitStack) -> _Scored:
    """Quantize with one scheme and evaluate its scores, with FP32 GEMMs and as served."""
    folder, own = setup.scratch / name, setup.recipe.quantization
    started = time.perf_counter()
    scheme, policy = scheme_from(name, own.options if name == own.scheme else None), policy_from(own.policy)
    tables = [
        quantize_side(
            setup.onnx[side], folder, scheme=scheme, calibration=setup.calibration, policy=policy,
            progress=setup.progress,
        )
        for side in SIDES
    ]  # fmt: skip
    seconds = time.perf_counter() - started
    engines = _load(setup, (*EXACT, *setup.plans), folder, loaded)
    exact, serving = _pair(engines, EXACT), _pair(engines, setup.plans)
    weights_db, _, weights_auc = _judge(setup, exact, f"{name}, FP32 GEMMs")
    served_db, tau, served_auc = _judge(setup, serving, f"{name}, as served")
    scores = SchemeScores(
        scheme=name,
        weights_db=weights_db,
        served_db=served_db,
        kendall_tau=tau,
        weights_auc_change=weights_auc,
        served_auc_change=served_auc,
        weight_bytes=sum(t.quantized_bytes for t in tables),
        user_gemm_bytes=_gemm_bytes(tables[0], "quantized_bytes"),
        seconds=seconds,
    )
    return _Scored(scores, serving, (sum(t.fp32_bytes for t in tables), _gemm_bytes(tables[0], "fp32_bytes")))


def _judge(setup: Comparison, ranker: Ranker, step: str) -> tuple[float, float, float | None]:
    """Return the lowest SQNR and Kendall tau of all tasks, and the largest AUC change."""
    scores = engine_scores(ranker, setup.requests, step, setup.progress)
    agreement = checks.parity(setup.reference, scores).values()
    auc = checks.task_auc(setup.requests, scores)
    changes = [auc[task] - before for task, before in checks.task_auc(setup.requests, setup.reference).items()]
    worst = max(changes, key=abs) if changes else None
    return min(a.sqnr_db for a in agreement), min(a.kendall_tau for a in agreement), worst


def _gemm_bytes(table: QuantTable, column: Literal["fp32_bytes", "quantized_bytes"]) -> int:
    return sum(getattr(row, column) for row in table.rows if row.kind == "matmul")


def _load(
    setup: Comparison, plans: Iterable[EnginePlan], folder: Path, loaded: ExitStack
) -> dict[EnginePlan, tuple[BuiltEngine, Runner]]:
    """Build and load each engine once, from the FP32 graphs or their quantized views in ``folder``."""
    engines = {}
    for plan in dict.fromkeys(plans):
        variant = find_backend(plan.backend).ONNX_VARIANT[plan.precision]
        source = setup.onnx[plan.side] if variant == "fp32" else folder / f"{plan.side}.onnx"
        target = folder / plan.directory
        target.mkdir(parents=True, exist_ok=True)
        built = compile_engine(setup.recipe, plan, source, target, setup.cache, setup.progress)
        engines[plan] = built, loaded.enter_context(closing(load_built(built, target)))
    return engines


def _pair(engines: Mapping[EnginePlan, tuple[BuiltEngine, Runner]], plans: Iterable[EnginePlan]) -> Ranker:
    (user_built, user), (item_built, item) = (engines[plan] for plan in plans)
    return Ranker(user, item, user_built, item_built)


def _calls(ranker: Ranker, request: Request, candidates: int) -> dict[str, Callable[[], object]]:
    """Return the calls to time: the user engine on one user, the item engine on ``candidates`` items."""
    feeds: dict[str, Array] = {k: np.resize(v, (candidates, *v.shape[1:])) for k, v in request.items.items()}
    feeds |= ranker.user_runner.infer(request.user)
    if ranker.takes_index:
        feeds[USER_INDEX] = np.zeros(candidates, np.int64)
    return {
        "user": lambda: ranker.user_runner.infer(request.user),
        "item": lambda: ranker.item_runner.infer(feeds),
    }
