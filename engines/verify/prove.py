"""The proof of a bundle: parity, quality, invariance and latency of its engines against the FP32 model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array, Runner
from engines.bundle.bundle import onnx_file
from engines.bundle.manifest import Manifest, engine_for
from engines.compile.compile import EnginePlan, compile_engine, load_built
from engines.recipes.recipe import Recipe
from engines.serve.ranker import Ranker
from engines.verify import checks
from engines.verify.agreement import Agreement
from engines.verify.checks import Check
from engines.verify.latency import RequestLatency, measure_latency
from engines.verify.reference import Reference
from engines.verify.routing import routing_of
from engines.verify.scores import engine_scores, score_errors
from engines.verify.weight_checks import int8_checks
from graphs.base.names import GraphSide
from graphs.base.progress import ProgressCallback, silent
from graphs.base.scratch import scratch_folder
from quant.requests.spec import Request

GRAPHS: tuple[GraphSide, ...] = ("full", "user", "item")
LATENCY_RETRIES = 2


@dataclass(frozen=True)
class Proof:
    """What was found: parity by task, AUC by variant and task, latencies, checks, score errors by variant."""

    split: Mapping[str, Agreement]
    quant: Mapping[str, Agreement]
    auc: Mapping[str, Mapping[str, float]]
    latency: Sequence[RequestLatency]
    checks: Sequence[Check]
    errors: Mapping[str, Array]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(t.passed for t in self.checks)


def prove_bundle(
    recipe: Recipe,
    manifest: Manifest,
    bundle: Path,
    requests: Sequence[Request],
    reference: Reference,
    limits: Mapping[int, float],
    *,
    scratch: Path | None = None,
    progress: ProgressCallback = silent,
) -> Proof:
    """Prove the engines a bundle chose against the FP32 model.

    Args:
        recipe: gates, threads and request sizes.
        manifest: the bundle's manifest.
        bundle: its directory, with ``onnx/full.onnx``, ``user.onnx`` and ``item.onnx`` in FP32.
        requests: held-out requests; if they carry labels, AUC is a gate too.
        reference: the FP32 scores of the requests.
        limits: FLOP limit of the speed-up for every request size to measure.
        scratch: an existing folder for the FP32 engines; by default the system's for temporary files.
        progress: called for every step.

    Raises:
        UgsepError: an engine cannot be built or loaded here.
        GateFailed: the reference refuses a graph; checks that fail are returned, not raised.
    """
    with ExitStack() as loaded:
        ranker = loaded.enter_context(
            Ranker.from_engines(bundle, manifest, engine_for(manifest, "user"), engine_for(manifest, "item"))
        )
        engines, runners = _fp32_engines(recipe, bundle, loaded, scratch, progress)
        reference.check_graphs(runners, progress)
        plain = Ranker(runners["user"], runners["item"], engines["user"], engines["item"])
        expected = reference.scores(runners["full"], progress)
        scores = {
            "split": engine_scores(plain, requests, "split scores", progress),
            "quantized": engine_scores(ranker, requests, "quantized scores", progress),
        }
        parity = {variant: checks.parity(expected, actual) for variant, actual in scores.items()}
        auc = {variant: checks.task_auc(requests, s) for variant, s in {"fp32": expected, **scores}.items()}
        largest = max(requests, key=lambda r: r.candidates)
        routing = routing_of(bundle, manifest, requests, progress)
        found = checks.parity_checks(
            recipe.gates,
            checks.split_errors(expected, scores["split"], routing),
            parity["quantized"],
            checks.check_invariance(ranker, largest),
        )
        found += checks.routing_checks(recipe.gates, routing) if routing is not None else []
        found += int8_checks(engine_for(manifest, side).built for side in ("user", "item"))
        found += checks.auc_checks(recipe.gates, auc["fp32"], auc["quantized"])
        latency = _latency(recipe, runners["full"], ranker, largest, limits, progress)
    found += checks.latency_checks(recipe.gates, latency[-1])
    errors = {variant: score_errors(expected, actual) for variant, actual in scores.items()}
    return Proof(parity["split"], parity["quantized"], auc, latency, found, errors)


def _fp32_engines(
    recipe: Recipe, bundle: Path, loaded: ExitStack, scratch: Path | None, progress: ProgressCallback
) -> tuple[dict[GraphSide, BuiltEngine], dict[GraphSide, Runner]]:
    """Build and load the FP32 engines of the three graphs; ``loaded`` closes them.

    They are the baseline and the proof of the split: measured, not shipped.
    """
    engines: dict[GraphSide, BuiltEngine] = {}
    runners: dict[GraphSide, Runner] = {}
    # Deleted after the runners are closed: variants of an engine are read when a request first needs them.
    folder = loaded.enter_context(scratch_folder(".ugsep-reference-", scratch))
    recipe = replace(recipe, serving=replace(recipe.serving, state="fp32"))  # a proof does not round
    for side in GRAPHS:
        plan = EnginePlan(side, "onnxruntime", "fp32")
        engines[side] = compile_engine(recipe, plan, onnx_file(bundle, side), folder, None, progress)
    for side, built in engines.items():
        runners[side] = loaded.enter_context(closing(load_built(built, folder)))
    return engines, runners


def _latency(
    recipe: Recipe,
    full: Runner,
    ranker: Ranker,
    request: Request,
    limits: Mapping[int, float],
    progress: ProgressCallback,
) -> Sequence[RequestLatency]:
    """Measure until the latency checks pass, at most LATENCY_RETRIES more times.

    Other processes only ever add time, and unevenly: a bound that is really missed is missed again.
    """
    for _ in range(LATENCY_RETRIES):
        latency = measure_latency(full, ranker, request, limits, progress)
        if all(t.passed for t in checks.latency_checks(recipe.gates, latency[-1])):
            return latency
    return measure_latency(full, ranker, request, limits, progress)
