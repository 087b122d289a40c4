"""The build pipeline: model -> split -> export -> quantize -> lower and compile -> verify -> report -> bundle."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.backends.table import find_backend
from engines.build import report, stages
from engines.build.source_model import (
    SourceModel,
    load_source_model,
    module_sha256,
)
from engines.build.sources import Sources, content_key
from engines.bundle.bundle import RECIPE, Bundle
from engines.bundle.manifest import Manifest, read_manifest, write_manifest
from engines.bundle.publish import publish
from engines.bundle.report_file import read_report
from engines.compile.compile import serving_plans
from engines.recipes.recipe import AUTO, Recipe, dump_recipe
from engines.verify.failing_rows import save_worst_rows
from engines.verify.validate import how_to_reproduce
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.explain.reuse import little_reuse
from graphs.split.split import Split
from graphs.trace.widen import WIDENED
from quant.requests.spec import Request


@dataclass(frozen=True)
class Build:
    """All that the stages found: the manifest, the findings of the report, and the requests used for verification."""

    manifest: Manifest
    findings: report.Findings
    requests: Sequence[Request]


def run_stages(job: stages.BuildJob, source: SourceModel) -> Build:
    """Run the stages in order; each takes the records of those before it.

    Raises:
        UgsepError: bad input, or an engine that cannot be built.
        GateFailed: a graph differs from the model; other gates that fail are in the findings.
    """
    torch.set_num_threads(job.recipe.serving.threads)
    model = stages.split_model(job, source)
    graphs = stages.export_onnx(job, model)
    samples = stages.calibrate_and_score(job, model, graphs)
    tables = stages.quantize(job, graphs, samples)
    selection = stages.select_engines(job, graphs, samples)
    with tempfile.TemporaryDirectory(dir=job.work, prefix=".lowered-") as scratch:
        lowered = stages.lower(job, graphs, selection, Path(scratch))
        compiled = stages.compile_engines(job, selection, lowered)
    manifest = stages.describe(job, graphs, samples, selection, compiled)
    compared = stages.compare(job, graphs, samples, selection)
    proof = stages.verify(job, model, samples, manifest)
    replayed = stages.fixtures(job, samples, manifest)
    batching = stages.batching(job, samples, manifest)
    findings = report.Findings(
        split=model.split,
        random_proof=model.proof,
        tables=tables,
        engines=compiled.engines,
        proof=dataclasses.replace(proof, checks=[*proof.checks, replayed]),
        calibration_sha256=samples.calibration.samples_sha256,
        synthetic=job.sources.synthetic,
        notes=[*_notes_on(model.split), *compiled.notes, *batching.notes],
        batching=batching.timings,
        tried=selection.tried,
        schemes=compared,
    )
    return Build(dataclasses.replace(manifest, batching=batching.timings), findings, samples.requests)


def _notes_on(split: Split) -> list[str]:
    little = little_reuse(split)
    return [*([WIDENED] if split.traced.widened else []), *([little] if little else [])]


@dataclass(frozen=True)
class Outcome:
    """The result of a build: the bundle, whether it was already up to date, and its report."""

    bundle: Path
    unchanged: bool
    report: Mapping[str, Any]


def build(
    name: str,
    recipe: Recipe,
    sources: Sources,
    out: Path,
    *,
    min_reuse: float = 0.0,
    force: bool = False,
    cache: Path | None = None,
    rebuild: str = "",
    progress: ProgressCallback = silent,
) -> Outcome:
    """Build, verify and publish the bundle of one model; return early if ``out`` is up to date.

    If a gate fails, the bundle is published as ``<out>.failed`` with its report, the rows with the largest error as
    ``<out>.failed.worst.npz``, and the old bundle stays. ``min_reuse`` is the share of the FLOPs that must run
    once per request, 0 to 1. ``rebuild`` is the command that errors about the bundle suggest, by default that of a
    shipped recipe.

    Raises:
        UgsepError: bad input, an unavailable backend, or an output directory that cannot be written.
        GateFailed: a gate failed; the message has the value, the bound, and the command that reproduces it.
    """
    # A checkpoint is hashed by its files, but a factory's module must be created first.
    source = load_source_model(recipe, sources) if sources.factory else None
    digest = module_sha256(source.module) if source is not None else ""
    key = content_key(name, recipe, sources, recipe.serving.backend, digest)
    if not force and _is_current(out, key):
        last = read_report(out)
        if last["split"]["reusable_share"] >= min_reuse:  # else the stage that splits says why not
            return Outcome(out, True, last)
    if recipe.serving.backend != AUTO:
        # Fail early if this cannot be built; first on missing software, which no setting can fix.
        here = find_backend(recipe.serving.backend).probe()
        if not here.can_build:
            raise UgsepError(f"backend '{recipe.serving.backend}' cannot build here: {here.reason}")
        serving_plans(recipe)
    failed = out.with_name(out.name + ".failed")
    with publish(out) as work:
        job = stages.BuildJob(name, recipe, sources, work, cache, progress, min_reuse)
        made = run_stages(job, source if source is not None else load_source_model(recipe, sources))
        found = made.findings
        (work / RECIPE).write_text(dump_recipe(recipe))
        document = report.report_document(name, recipe, found)
        report.write_report(work, document, found)
        again, passed = rebuild_command(name, rebuild), bool(document["passed"])
        write_manifest(work, dataclasses.replace(made.manifest, rebuild=again, content_key=key, passed=passed))
        broken = [str(t) for t in found.proof.checks if not t.passed]
        if broken:
            with publish(failed) as kept:
                for path in list(work.iterdir()):
                    path.rename(kept / path.name)
            worst = save_worst_rows(failed.with_name(f"{failed.name}.worst.npz"), made.requests, found.proof.errors)
            again = how_to_reproduce(failed, sources.requests or (worst,))
            raise GateFailed(
                f"{name}: {'; '.join(broken)}; see {failed / 'report.html'}; worst rows: {worst}; reproduce: {again}"
            )
    progress(Progress("report", 1, 1, str(out / "report.html")))
    return Outcome(out, False, document)


def rebuild_command(name: str, typed: str = "") -> str:
    """Return the typed command, or that of a shipped recipe if it is empty or not printable."""
    return typed if typed and typed.isprintable() else f"make engines MODEL={name}"


def _is_current(out: Path, key: str) -> bool:
    """Return True if ``out`` is an intact bundle with this key."""
    if not (out / "manifest.json").is_file():
        return False
    try:
        if read_manifest(out).content_key != key:
            return False
        Bundle.open(out)
    except UgsepError:
        return False  # rebuild a damaged bundle, or a folder of another tool
    return True
