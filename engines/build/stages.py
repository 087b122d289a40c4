"""The stages of a build, in order; each takes the records of earlier stages and returns its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from engines.backends.host import host_isa
from engines.build.autoselect import Trial, choose_engines
from engines.build.graph_exports import export_graphs
from engines.build.id_ranges import table_sizes
from engines.build.schemes import Comparison, SchemeTable, compare_schemes
from engines.build.source_model import SourceModel, fresh_feeds, random_requests, split_source_model
from engines.build.sources import Sources
from engines.bundle.manifest import Engine, Manifest, engine_for
from engines.bundle.provenance import tool_versions
from engines.compile.compile import (
    EnginePlan,
    LoweredEngine,
    compile_lowered,
    lower_engine,
    planned_engines,
    serving_plans,
)
from engines.recipes.recipe import AUTO, Recipe
from engines.serve.ranker import Ranker
from engines.verify import prove
from engines.verify.batching import Batching, measure_batching
from engines.verify.checks import Check
from engines.verify.fixtures import write_fixtures
from engines.verify.reference import PyTorchReference
from engines.verify.scores import Scores, reference_scores
from export.metadata import OPSET
from graphs.base.errors import UgsepError
from graphs.base.names import GraphSide
from graphs.base.progress import Progress, ProgressCallback
from graphs.explain.reuse import check_reuse
from graphs.split.proof import SplitProof, prove_split
from graphs.split.split import Split
from quant.calibration.calibrate import CALIBRATION_REQUESTS, calibrate
from quant.calibration.files import save_calibration
from quant.calibration.statistics import Calibration, without_grams
from quant.policy import policy_from
from quant.requests.readers import read_requests
from quant.requests.spec import Request, request_spec
from quant.requests.synthetic import SYNTHETIC_CANDIDATES, SYNTHETIC_REQUESTS
from quant.schemes.schemes import needs_grams, scheme_from
from quant.weight_table import QuantTable
from quant.weights import quantize_side

Graphs = Mapping[GraphSide, Path]
T = TypeVar("T")
BATCHING_CACHE_BYTES = 1 << 30  # a limit: a few users' states are cached, however large


@dataclass(frozen=True)
class BuildJob:
    """The inputs of every stage: the model's name, recipe and sources, the output folder and the engine cache.

    ``min_reuse`` is the share of the FLOPs, 0 to 1, that must run once per request.
    """

    name: str
    recipe: Recipe
    sources: Sources
    work: Path
    cache: Path | None
    progress: ProgressCallback
    min_reuse: float = 0.0


@dataclass(frozen=True)
class SplitModel:
    """A model, its split into user and item graph, and the proof on random rows that both match the model."""

    source: SourceModel
    split: Split
    proof: SplitProof


@dataclass(frozen=True)
class Samples:
    """Activation statistics, and held-out requests with their FP32 scores from PyTorch."""

    calibration: Calibration
    requests: Sequence[Request]
    reference: Scores


@dataclass(frozen=True)
class Selection:
    """The user and item engine to serve with; the trials of ``backend: auto``, and its reasons by side."""

    plans: Sequence[EnginePlan]
    tried: Sequence[Trial] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoweredEngines:
    """Engines to compile, user and item first, and a note for each that cannot be built here."""

    engines: Sequence[LoweredEngine]
    notes: Sequence[str]


@dataclass(frozen=True)
class CompiledEngines:
    """The engines of a bundle, user and item first, and a note on each engine that was skipped."""

    engines: Sequence[Engine]
    notes: Sequence[str]


def split_model(job: BuildJob, source: SourceModel) -> SplitModel:
    """Split the model and compare the user and item graph with it on random rows.

    Raises:
        UgsepError: the errors of ``graphs.split.split``, or less to reuse than the job asks for.
        GateFailed: the graphs differ from the model.
    """
    split = split_source_model(source, job.progress)
    check_reuse(split, job.min_reuse)
    return SplitModel(source, split, prove_split(split, rows_like=source.rows_like))


def export_onnx(job: BuildJob, model: SplitModel) -> Graphs:
    """Write the FP32 ONNX files of the full, user and item graph."""
    return export_graphs(job.name, model.source, model.split, job.work / "onnx", job.progress)


def calibrate_and_score(job: BuildJob, model: SplitModel, graphs: Graphs) -> Samples:
    """Collect activation statistics on the calibration requests, and FP32 scores of the held-out ones.

    Raises:
        UgsepError: request files that cannot be read or do not match the graphs.
    """
    sources, threads, schemes = job.sources, job.recipe.serving.threads, job.recipe.quantization
    samples = _requests(sources.calibration, model, graphs, sources.seed, CALIBRATION_REQUESTS)
    requests = _requests(sources.requests, model, graphs, sources.seed + 1)
    calibration = calibrate(
        graphs["user"], graphs["item"], samples, threads=threads, progress=job.progress,
        gram=needs_grams((schemes.scheme, *schemes.compare)), synthetic=not sources.calibration,
    )  # fmt: skip
    save_calibration(without_grams(calibration), job.work)
    return Samples(calibration, requests, reference_scores(model.split.full, requests, threads, job.progress))


def quantize(job: BuildJob, graphs: Graphs, samples: Samples) -> dict[str, QuantTable]:
    """Write the int8 views of the user and item graph; return the table of weights per side."""
    settings = job.recipe.quantization
    scheme, policy = scheme_from(settings.scheme, settings.options), policy_from(settings.policy)
    sides: tuple[GraphSide, ...] = ("user", "item")
    return {
        side: quantize_side(
            graphs[side], job.work / "onnx", scheme=scheme, calibration=samples.calibration, policy=policy,
            progress=job.progress,
        )
        for side in sides
    }  # fmt: skip


def select_engines(job: BuildJob, graphs: Graphs, samples: Samples) -> Selection:
    """Return the engines of the recipe or, for ``backend: auto``, the fastest on this machine that keep parity.

    Raises:
        UgsepError: an unknown backend or precision, or no engine keeps parity.
    """
    if job.recipe.serving.backend != AUTO:
        return Selection(serving_plans(job.recipe))
    with tempfile.TemporaryDirectory(dir=job.work, prefix=".choose-") as scratch:
        choice = choose_engines(
            job.recipe, graphs, Path(scratch), job.cache, samples.requests, samples.reference, job.progress
        )
    return Selection(choice.plans, choice.tried, choice.reasons())


def lower(job: BuildJob, graphs: Graphs, selection: Selection, folder: Path) -> LoweredEngines:
    """Lower the graphs into ``folder`` for the backend of each engine, except for engines that the cache holds.

    Raises:
        UgsepError: a backend that serves cannot build here, or cannot take a graph.
    """
    plans, notes = planned_engines(job.recipe, selection.plans, job.progress)
    lowered, refused = _of_backends(
        plans,
        selection.plans,
        lambda plan: lower_engine(
            job.recipe, plan, graphs[plan.side], folder / plan.directory, job.cache, job.progress
        ),
    )
    return LoweredEngines(list(lowered.values()), [*notes, *_left_out(job, refused)])


def compile_engines(job: BuildJob, selection: Selection, lowered: LoweredEngines) -> CompiledEngines:
    """Compile the lowered graphs in the bundle's directory, or copy the engines from the cache.

    Raises:
        UgsepError: an engine that serves does not compile, or is not as its precision says.
    """
    engines = {engine.plan: engine for engine in lowered.engines}
    compiled, refused = _of_backends(
        list(engines),
        selection.plans,
        lambda plan: Engine(
            plan.directory,
            compile_lowered(engines[plan], job.work / plan.directory, job.cache, job.progress),
        ),
    )
    for backend in refused:
        shutil.rmtree(job.work / "engines" / backend, ignore_errors=True)
    return CompiledEngines(list(compiled.values()), [*lowered.notes, *_left_out(job, refused)])


def _of_backends(
    plans: Sequence[EnginePlan], serving: Sequence[EnginePlan], make: Callable[[EnginePlan], T]
) -> tuple[dict[EnginePlan, T], dict[str, str]]:
    """Return what ``make`` gives by plan, and by backend that does not take a graph why; both its sides are left out.

    Raises:
        UgsepError: a backend of the ``serving`` engines does not.
    """
    made: dict[EnginePlan, T] = {}
    refused: dict[str, str] = {}
    needed = {plan.backend for plan in serving}
    for plan in plans:
        if plan.backend in refused:
            continue
        try:
            made[plan] = make(plan)
        except UgsepError as error:
            if plan.backend in needed:
                raise
            refused[plan.backend] = f"{plan.side} {plan.precision}: {error}"
    return {plan: result for plan, result in made.items() if plan.backend not in refused}, refused


def _left_out(job: BuildJob, refused: Mapping[str, str]) -> list[str]:
    notes = [f"{backend}: left out: {why}" for backend, why in refused.items()]
    for note in notes:
        job.progress(Progress("build", 0, None, note))
    return notes


def describe(
    job: BuildJob, graphs: Graphs, samples: Samples, selection: Selection, compiled: CompiledEngines
) -> Manifest:
    """Return the manifest without the fields that are known only after verification."""
    return Manifest(
        model=job.name,
        rebuild="",
        opset=OPSET,
        engines=tuple(compiled.engines),
        tools=tool_versions(),
        host={"isa": host_isa()},
        choice={plan.side: plan.directory for plan in selection.plans},
        calibration=samples.calibration.samples_sha256,
        synthetic=job.sources.synthetic,
        reasons=selection.reasons,
        vocabularies={**table_sizes(graphs["user"]), **table_sizes(graphs["item"])},
    )


def compare(job: BuildJob, graphs: Graphs, samples: Samples, selection: Selection) -> SchemeTable | None:
    """Compare the quantization schemes of the recipe; None if it lists none or there are no real requests."""
    schemes = job.recipe.quantization.compare
    if not schemes or job.sources.synthetic:
        return None
    with tempfile.TemporaryDirectory(dir=job.work, prefix=".schemes-") as scratch:
        setup = Comparison(
            recipe=job.recipe,
            onnx=graphs,
            plans=selection.plans,
            calibration=samples.calibration,
            requests=samples.requests,
            reference=samples.reference,
            scratch=Path(scratch),
            cache=job.cache,
            progress=job.progress,
        )
        return compare_schemes(job.name, setup, schemes)


def verify(job: BuildJob, model: SplitModel, samples: Samples, manifest: Manifest) -> prove.Proof:
    """Verify the engines against the PyTorch model: parity, quality, invariance and latency.

    Raises:
        GateFailed: an exported graph differs from the model; other failed checks are recorded in the proof.
    """
    limits = {n: model.split.speedup_limit(n) for n in job.recipe.serving.candidates}
    reference = PyTorchReference(
        model.split,
        samples.reference,
        lambda candidates, users: fresh_feeds(model.source, model.split, users, candidates, seed=candidates),
    )
    return prove.prove_bundle(
        job.recipe,
        manifest,
        job.work,
        samples.requests,
        reference,
        limits,
        scratch=job.work,  # which the next build removes if this one is killed
        progress=job.progress,
    )


def fixtures(job: BuildJob, samples: Samples, manifest: Manifest) -> Check:
    """Write requests with their logits into the bundle; return the check that reloaded engines repeat them."""
    sizes = job.recipe.serving.candidates
    return write_fixtures(job.work, manifest, samples.requests, samples.reference, sizes)


def batching(job: BuildJob, samples: Samples, manifest: Manifest) -> Batching:
    """Measure what it gains to score several users in one item call."""
    pair = engine_for(manifest, "user"), engine_for(manifest, "item")
    with Ranker.from_engines(job.work, manifest, *pair, cache_bytes=BATCHING_CACHE_BYTES) as ranker:
        return measure_batching(ranker, samples.requests, job.progress)


def _requests(
    paths: Sequence[Path], model: SplitModel, graphs: Graphs, seed: int, limit: int | None = None
) -> list[Request]:
    """Return at most ``limit`` requests from the files, or random ones if there are no files."""
    if not paths:
        return random_requests(model.source, model.split, SYNTHETIC_REQUESTS, SYNTHETIC_CANDIDATES, seed)
    stream = read_requests([str(p) for p in paths], request_spec(graphs["user"], graphs["item"]))
    return list(islice(stream, limit))
