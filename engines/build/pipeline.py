"""The whole road: model -> split -> ONNX -> int8 -> engines -> gates -> report -> bundle."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from engines.backends.host import host_isa
from engines.backends.table import find_backend
from engines.build import report
from engines.build.autoselect import Trial, choose_engines
from engines.build.id_ranges import table_sizes
from engines.build.schemes import compare_schemes
from engines.build.source_model import (
    SourceModel,
    fresh_feeds,
    load_source_model,
    module_sha256,
    split_source_model,
    synthetic_requests,
)
from engines.build.sources import Sources, content_key
from engines.bundle.bundle import RECIPE, Bundle, read_report
from engines.bundle.manifest import Manifest, read_manifest, write_manifest
from engines.bundle.provenance import tool_versions
from engines.bundle.publish import publish
from engines.compile.compile import build_engines, serving_plans
from engines.recipes.recipe import AUTO, Recipe, dump_recipe
from engines.verify import prove
from engines.verify.failing_rows import save_worst_rows
from engines.verify.reference import PyTorchReference
from engines.verify.scores import reference_scores
from engines.verify.validate import how_to_reproduce
from export.metadata import OPSET, GraphSide, Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.split.proof import prove as prove_split
from graphs.split.split import Split, Subgraph
from quant.calibration.calibrate import calibrate
from quant.calibration.statistics import Calibration, save_calibration, without_grams
from quant.policy import policy_from
from quant.requests.readers import Request, read_requests, request_spec
from quant.requests.synthetic import SYNTHETIC_CANDIDATES, SYNTHETIC_REQUESTS
from quant.schemes.schemes import scheme_from
from quant.weights import QuantTable, quantize_side

TRACE_USERS, TRACE_CANDIDATES = 3, 7
CALIBRATION_REQUESTS = 400


@dataclass(frozen=True)
class Outcome:
    """What a build produced: the bundle, whether it was already up to date, and the report."""

    bundle: Path
    unchanged: bool
    report: Mapping[str, Any]


def build(
    name: str,
    recipe: Recipe,
    sources: Sources,
    out: Path,
    *,
    force: bool = False,
    cache: Path | None = None,
    rebuild: str = "",
    progress: ProgressCallback = silent,
) -> Outcome:
    """Build, prove and publish the bundle of one model; nothing is done where the same contents were built before.

    A build whose gates fail is published as ``<out>.failed`` (with its report), the rows that are furthest off as
    ``<out>.failed.worst.npz``, and the old bundle stays. ``rebuild`` is the command that the bundle names where it is
    refused, by default that of a shipped recipe.

    Raises:
        UgsepError: bad input, an unavailable backend, or an output directory that cannot be written.
        GateFailed: a gate did not hold; names the value and the bound, and the command that reproduces it.
    """
    # A factory's module is only known once it is made; a checkpoint is known by its files.
    made = load_source_model(recipe, sources) if sources.factory else None
    digest = module_sha256(made.module) if made is not None else ""
    key = content_key(name, recipe, sources, recipe.serving.backend, digest)
    if not force and _is_current(out, key):
        return Outcome(out, True, read_report(out))
    if recipe.serving.backend != AUTO:
        # Refuse what cannot be built before any work; first what is missing, which no setting mends.
        here = find_backend(recipe.serving.backend).probe()
        if not here.can_build:
            raise UgsepError(f"backend '{recipe.serving.backend}' cannot build here: {here.reason}")
        serving_plans(recipe)
    failed = out.with_name(out.name + ".failed")
    with publish(out) as work:
        manifest, found, requests = _make(name, recipe, sources, made, work, cache, progress)
        document = report.report_document(name, recipe, found)
        report.write_report(work, document, found)
        again, passed = rebuild_command(name, rebuild), bool(document["passed"])
        write_manifest(work, dataclasses.replace(manifest, rebuild=again, content_key=key, passed=passed))
        broken = [str(t) for t in found.proof.targets if not t.passed]
        if broken:
            with publish(failed) as kept:
                for path in list(work.iterdir()):
                    path.rename(kept / path.name)
            worst = save_worst_rows(failed.with_name(f"{failed.name}.worst.npz"), requests, found.proof.errors)
            again = how_to_reproduce(failed, sources.requests or (worst,))
            raise GateFailed(
                f"{name}: {'; '.join(broken)}; see {failed / 'report.html'}; worst rows: {worst}; reproduce: {again}"
            )
    progress(Progress("report", 1, 1, str(out / "report.html")))
    return Outcome(out, False, document)


def rebuild_command(name: str, typed: str = "") -> str:
    """Return the command that was typed, that of a shipped recipe where none was or where no manifest may hold it."""
    return typed if typed and typed.isprintable() else f"make engines MODEL={name}"


def _is_current(out: Path, key: str) -> bool:
    """Say whether a sound bundle of this key stands at ``out``."""
    if not (out / "manifest.json").is_file():
        return False
    try:
        if read_manifest(out).content_key != key:
            return False
        Bundle.open(out)
    except UgsepError:
        return False  # a damaged bundle, or another tool's folder, is rebuilt
    return True


def _make(
    name: str,
    recipe: Recipe,
    sources: Sources,
    made: SourceModel | None,
    work: Path,
    cache: Path | None,
    progress: ProgressCallback,
) -> tuple[Manifest, report.Findings, list[Request]]:
    torch.set_num_threads(recipe.serving.threads)
    source_model = made if made is not None else load_source_model(recipe, sources)
    subgraphs = split_source_model(source_model, progress)
    random_proof = prove_split(subgraphs, rows_like=source_model.rows_like)
    onnx = export_all(name, source_model, subgraphs, work / "onnx", progress)
    samples = _requests(sources.calibration, source_model, subgraphs, onnx, sources.seed, CALIBRATION_REQUESTS)
    requests = _requests(sources.requests, source_model, subgraphs, onnx, sources.seed + 1)
    calibration = calibrate(
        onnx["user"], onnx["item"], samples, threads=recipe.serving.threads, progress=progress,
        gram=_needs_gram(recipe), synthetic=not sources.calibration,
    )  # fmt: skip
    save_calibration(without_grams(calibration), work)
    tables = quantize_all(recipe, onnx, work / "onnx", calibration, progress)
    reference = reference_scores(subgraphs.full, requests, recipe.serving.threads, progress)
    tried: tuple[Trial, ...] = ()
    reasons: Mapping[str, str] = {}
    if recipe.serving.backend == AUTO:
        with tempfile.TemporaryDirectory(prefix="ugsep-choose-") as scratch:
            choice = choose_engines(recipe, onnx, Path(scratch), cache, requests, reference, progress)
        plans, tried = choice.plans, choice.tried
        reasons = choice.reasons()
    else:
        plans = serving_plans(recipe)
    engines, notes = build_engines(recipe, plans, onnx, work, cache, progress)
    manifest = Manifest(
        model=name,
        rebuild=rebuild_command(name),
        opset=OPSET,
        engines=tuple(engines),
        tools=tool_versions(),
        host={"isa": host_isa()},
        choice={plan.side: plan.directory for plan in plans},
        calibration=calibration.samples_sha256,
        synthetic=sources.synthetic,
        reasons=reasons,
        vocabularies={**table_sizes(onnx["user"]), **table_sizes(onnx["item"])},
    )
    compared = None
    if recipe.quantization.compare and not sources.synthetic:
        with tempfile.TemporaryDirectory(prefix="ugsep-schemes-") as scratch:
            compared = compare_schemes(
                name, recipe, onnx, plans, calibration, requests, reference, Path(scratch),
                schemes=recipe.quantization.compare, cache=cache, progress=progress,
            )  # fmt: skip
    (work / RECIPE).write_text(dump_recipe(recipe))
    limits = {n: subgraphs.speedup_limit(n) for n in recipe.serving.candidates}
    model = PyTorchReference(
        subgraphs, reference, lambda n, users: fresh_feeds(source_model, subgraphs, users, n, seed=n)
    )
    proven = prove.prove(recipe, manifest, work, requests, model, limits, progress=progress)
    found = report.Findings(
        subgraphs, random_proof, tables, engines, proven, calibration.samples_sha256, sources.synthetic, notes, tried,
        compared,
    )  # fmt: skip
    return manifest, found, requests


def _needs_gram(recipe: Recipe) -> bool:
    """Say whether a scheme that is built or compared reads Gram matrices, which take most of a calibration's time."""
    return "gptq" in (recipe.quantization.scheme, *recipe.quantization.compare)


def _requests(
    paths: Sequence[Path],
    source_model: SourceModel,
    subgraphs: Split,
    onnx: Mapping[GraphSide, Path],
    seed: int,
    limit: int = 0,
) -> list[Request]:
    """Return the requests of the files, at most ``limit`` (0: all); random ones where no file is given."""
    if not paths:
        return synthetic_requests(source_model, subgraphs, SYNTHETIC_REQUESTS, SYNTHETIC_CANDIDATES, seed)
    stream = read_requests([str(p) for p in paths], request_spec(onnx["user"], onnx["item"]))
    return list(islice(stream, limit) if limit else stream)


def export_all(
    name: str, source_model: SourceModel, subgraphs: Split, folder: Path, progress: ProgressCallback = silent
) -> dict[GraphSide, Path]:
    """Export the full, user and item graph; returns the files by side."""
    feeds = fresh_feeds(source_model, subgraphs, TRACE_USERS, TRACE_CANDIDATES, seed=1)
    state = {s.name for s in subgraphs.state}
    paths: dict[GraphSide, Path] = {}
    sides: dict[GraphSide, Subgraph] = {"full": subgraphs.full, "user": subgraphs.user, "item": subgraphs.item}
    for done, (side, half) in enumerate(sides.items()):
        progress(Progress("export", done, len(sides), side))
        rows = {n: "users" if side == "user" or n in state else "candidates" for n in half.inputs}
        stamp = Stamp(name, side, "fp32", source_model.keep_float)
        paths[side] = export_subgraph(half, feeds[side], rows, folder / f"{side}.onnx", stamp).path
    progress(Progress("export", len(sides), len(sides)))
    return paths


def quantize_all(
    recipe: Recipe,
    onnx: Mapping[GraphSide, Path],
    folder: Path,
    calibration: Calibration,
    progress: ProgressCallback = silent,
) -> dict[str, QuantTable]:
    """Write the int8 views of the user and the item graph; returns the table of weights per side."""
    scheme = scheme_from(recipe.quantization.scheme, recipe.quantization.options)
    policy = policy_from(recipe.quantization.policy)
    sides: tuple[GraphSide, ...] = ("user", "item")
    return {
        side: quantize_side(
            onnx[side], folder, scheme=scheme, calibration=calibration, policy=policy, progress=progress
        )
        for side in sides
    }
