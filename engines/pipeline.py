"""The whole road: model -> split -> ONNX -> int8 -> engines -> gates -> report -> bundle."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines import gates, report
from engines.backend import BuildSpec, BuiltEngine, Option, Profile, Rows, check_precision, find_backend
from engines.backends.onnxruntime import host_isa
from engines.bundle import open_bundle, publish
from engines.latency import measure
from engines.manifest import Engine, Manifest, engine_for, read_manifest, write_manifest
from engines.ranker import Ranker
from engines.recipe import Recipe, dump_recipe
from engines.sources import Sources, content_key, load_model, load_requests, tool_versions
from export.metadata import OPSET, GraphSide, Stamp
from export.onnx_file import export_half
from graphs.errors import GateFailed, UgsepError
from graphs.features import of_side, random_rows
from graphs.progress import Progress, ProgressCallback, silent
from graphs.ranking_model import RankingModel
from graphs.split import Half, Split, split
from quant.calibrate import calibrate
from quant.policy import policy_from
from quant.requests import request_spec
from quant.schemes import scheme_from
from quant.statistics import Calibration, save_calibration
from quant.weights import QuantTable, quantize_side

STEPS = ("split", "export", "check", "calibrate", "quantize", "build", "parity", "latency", "report")
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
    progress: ProgressCallback = silent,
) -> Outcome:
    """Build, prove and publish the bundle of one model; nothing is done where the same contents were built before.

    A build whose gates fail is published as ``<out>.failed`` (with its report) and the old bundle stays.

    Raises:
        UgsepError: bad input, an unavailable backend, or an output directory that cannot be written.
        GateFailed: a gate did not hold; names the value and the bound.
    """
    key = content_key(name, recipe, sources, recipe.serving.backend)
    if not force and _is_current(out, key):
        return Outcome(out, True, report.read_report(out))
    backend = find_backend(recipe.serving.backend)
    here = backend.probe()
    if not here.can_build:
        raise UgsepError(f"backend '{recipe.serving.backend}' cannot build here: {here.reason}")
    for precision in recipe.serving.precision.values():
        check_precision(recipe.serving.backend, backend, precision)
    failed = out.with_name(out.name + ".failed")
    with publish(out) as work:
        manifest, found = _make(name, recipe, sources, work, progress)
        document = report.report_document(name, recipe, found)
        report.write_report(work, document, found)
        stamped: dict[str, Option] = {"key": key, "passed": bool(document["passed"])}
        write_manifest(work, dataclasses.replace(manifest, extra=stamped))
        broken = [str(t) for t in found.targets if not t.passed]
        if broken:
            with publish(failed) as kept:
                for path in list(work.iterdir()):
                    path.rename(kept / path.name)
            raise GateFailed(f"{name}: {'; '.join(broken)}; see {failed / 'report.html'}")
    progress(Progress("report", 1, 1, str(out / "report.html")))
    return Outcome(out, False, document)


def _is_current(out: Path, key: str) -> bool:
    """Say whether a sound bundle of this key stands at ``out``."""
    if not (out / "manifest.json").is_file():
        return False
    try:
        if read_manifest(out).extra.get("key") != key:
            return False
        open_bundle(out)
    except UgsepError:
        return False  # a damaged or foreign bundle is simply built again
    return True


def _make(
    name: str, recipe: Recipe, sources: Sources, work: Path, progress: ProgressCallback
) -> tuple[Manifest, report.Findings]:
    torch.set_num_threads(recipe.serving.threads)
    model = load_model(recipe, sources)
    halves = split_model(model, progress)
    onnx = export_all(name, model, halves, work / "onnx", progress)
    spec, features = request_spec(onnx["user"], onnx["item"]), model.config.features
    samples = load_requests(sources.calibration, spec, features, sources.seed, CALIBRATION_REQUESTS)
    requests = load_requests(sources.requests, spec, features, sources.seed + 1)
    calibration = calibrate(
        onnx["user"], onnx["item"], samples, threads=recipe.serving.threads, progress=progress,
        synthetic=not sources.calibration,
    )  # fmt: skip
    save_calibration(calibration, work)
    tables = quantize_all(recipe, onnx, work / "onnx", calibration, progress)
    engines, notes = build_engines(recipe, onnx, work, progress)
    manifest = Manifest(
        model=name,
        rebuild=f"make engines MODEL={name}",
        opset=OPSET,
        engines=tuple(engines),
        tools=tool_versions(),
        host={"isa": host_isa()},
        choice={e.built.side: e.directory for e in engines if e.built.backend == recipe.serving.backend},
        calibration=calibration.samples_sha256,
        synthetic=sources.synthetic,
    )
    (work / "recipe.yaml").write_text(dump_recipe(recipe))
    ranker = Ranker.from_engines(work, manifest, engine_for(manifest, "user"), engine_for(manifest, "item"))
    # The FP32 engines are the baseline and the proof of the split; they are measured, not shipped.
    with tempfile.TemporaryDirectory(dir=work, prefix=".reference-") as folder:
        fp32 = {side: _build_one(recipe, side, "fp32", onnx[side], Path(folder), progress) for side in onnx}
        check_exports(halves, fp32, Path(folder), model, progress)
        runners = {side: _load(engine, Path(folder)) for side, engine in fp32.items()}
    plain = Ranker(runners["user"], runners["item"], fp32["user"], fp32["item"])

    reference = gates.reference_scores(halves.full, requests, recipe.serving.threads, progress)
    scores = {
        "split": gates.engine_scores(plain, requests, "split scores", progress),
        "quantized": gates.engine_scores(ranker, requests, "quantized scores", progress),
    }
    parity = {variant: gates.parity(reference, actual) for variant, actual in scores.items()}
    auc = {v: gates.task_auc(requests, s) for v, s in {"fp32": reference, **scores}.items()}
    largest = max(requests, key=lambda r: r.candidates)
    targets = gates.parity_targets(
        recipe.gates, parity["split"], parity["quantized"], gates.check_invariance(ranker, largest)
    )
    targets += gates.auc_targets(recipe.gates, auc["fp32"], auc["quantized"])
    limits = {n: halves.speedup_limit(n) for n in recipe.serving.candidates}
    latency = measure(
        runners["full"], ranker.user_runner, ranker.item_runner, ranker, largest, limits, progress
    )  # fmt: skip
    targets += report.latency_targets(recipe.gates, latency[-1])
    for runner in (runners["full"], plain, ranker):
        runner.close()
    errors = {variant: gates.score_errors(reference, actual) for variant, actual in scores.items()}
    found = report.Findings(
        halves, tables, engines, parity["split"], parity["quantized"], auc, latency, targets, errors,
        calibration.samples_sha256, sources.synthetic, notes,
    )  # fmt: skip
    return manifest, found


def split_model(model: RankingModel, progress: ProgressCallback = silent) -> Split:
    """Split a model by the sides its features declare."""
    progress(Progress("split", 0, 1))
    features = model.config.features
    example = random_rows(features, TRACE_CANDIDATES, torch.Generator().manual_seed(0))
    names = {side: [f.name for f in of_side(features, side)] for side in ("user", "item")}
    halves = split(model, {"features": example}, user=names["user"], item=names["item"])
    progress(Progress("split", 1, 1, f"{halves.reusable_share:.0%} of the FLOPs once per request"))
    return halves


def export_all(
    name: str, model: RankingModel, halves: Split, folder: Path, progress: ProgressCallback = silent
) -> dict[GraphSide, Path]:
    """Export the full, user and item graph; returns the files by side."""
    feeds = example_feeds(model, halves, TRACE_USERS, TRACE_CANDIDATES, seed=1)
    state = {s.name for s in halves.state}
    paths: dict[GraphSide, Path] = {}
    sides: dict[GraphSide, Half] = {"full": halves.full, "user": halves.user, "item": halves.item}
    for done, (side, half) in enumerate(sides.items()):
        progress(Progress("export", done, len(sides), side))
        rows = {n: "users" if side == "user" or n in state else "candidates" for n in half.inputs}
        stamp = Stamp(name, side, "fp32", model.keep_float)
        paths[side] = export_half(half, feeds[side], rows, folder / f"{side}.onnx", stamp).path
    progress(Progress("export", len(sides), len(sides)))
    return paths


def example_feeds(
    model: RankingModel, halves: Split, users: int, candidates: int, seed: int
) -> dict[GraphSide, dict[str, torch.Tensor]]:
    """Return fresh random feeds of the three graphs that describe the same request."""
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(of_side(model.config.features, "user"), users, generator)
    items = random_rows(of_side(model.config.features, "item"), candidates, generator)
    index = torch.randint(0, users, (candidates,), generator=generator)
    state = halves.user({n: rows[n] for n in halves.user.inputs})
    everything = {**{k: v[index] for k, v in rows.items()}, **items}
    given = {**items, **state, "user_index": index}
    return {
        "full": {n: everything[n] for n in halves.full.inputs},
        "user": {n: rows[n] for n in halves.user.inputs},
        "item": {n: given[n] for n in halves.item.inputs},
    }


def check_exports(
    halves: Split,
    engines: Mapping[GraphSide, BuiltEngine],
    folder: Path,
    model: RankingModel,
    progress: ProgressCallback = silent,
) -> None:
    """Run every exported FP32 graph at 1, 2 and N rows against PyTorch on fresh random rows.

    Raises:
        GateFailed: a graph differs by more than FP32 rounding allows.
    """
    sides: dict[GraphSide, Half] = {"full": halves.full, "user": halves.user, "item": halves.item}
    for done, (side, half) in enumerate(sides.items()):
        runner = _load(engines[side], folder)
        for users, candidates in ((1, 1), (1, 2), (3, 257)):
            feeds = example_feeds(model, halves, users, candidates, seed=candidates)[side]
            wanted = half(feeds)
            got = runner.infer({k: v.numpy() for k, v in feeds.items()})
            for output, value in wanted.items():
                expected = value.numpy()
                # FP32 sums of a few thousand terms in another order: 1e-5 of the tensor's own scale.
                bound = 1e-5 * max(1.0, float(np.abs(expected).max()))
                worst = float(np.abs(got[output] - expected).max())
                if not worst <= bound:
                    raise GateFailed(
                        f"onnx/{side}.onnx '{output}' at {candidates} rows: |difference| {worst:.3g} > {bound:.3g}"
                    )
        runner.close()
        progress(Progress("check", done + 1, len(sides), f"{side}.onnx against PyTorch at 1, 2, 257 rows"))


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


def build_engines(
    recipe: Recipe, onnx: Mapping[GraphSide, Path], work: Path, progress: ProgressCallback = silent
) -> tuple[list[Engine], list[str]]:
    """Build the serving backend's engines and compile for the further backends; returns engines and notes."""
    built: list[Engine] = []
    notes: list[str] = []
    sides: tuple[GraphSide, ...] = ("user", "item")
    serving = recipe.serving
    for name in (serving.backend, *serving.compile_for):
        available = find_backend(name).probe()
        if not available.can_build:
            notes.append(f"{name}: not built here: {available.reason}")
            progress(Progress("build", 0, None, notes[-1]))
            continue
        for side in sides:
            precision = serving.precision[side] if name == serving.backend else "w8a16"
            relative = Path("engines") / name / f"{side}.{precision}"
            target = work / relative
            target.mkdir(parents=True)
            engine = _build_one(recipe, side, precision, onnx[side], target, progress, backend=name)
            built.append(Engine(relative.as_posix(), engine))
    return built, notes


def _build_one(
    recipe: Recipe,
    side: GraphSide,
    precision: str,
    onnx: Path,
    folder: Path,
    progress: ProgressCallback,
    backend: str = "",
) -> BuiltEngine:
    name = backend or "onnxruntime"
    module = find_backend(name)
    variant = check_precision(name, module, precision)
    source = onnx if variant == "fp32" else onnx.with_name(f"{side}.{variant}.onnx")
    largest = max(recipe.serving.max_candidates, *recipe.serving.candidates)
    profile = Profile(Rows(1, 1, 1), Rows(1, max(recipe.serving.candidates), largest))
    options: dict[str, Any] = dict(recipe.serving.options.get(name, {}))
    if name == "onnxruntime":
        options.setdefault("threads", recipe.serving.threads)
    spec = BuildSpec(side, source, precision, (profile,), options)
    return module.build(spec, folder, lambda note: progress(Progress(f"build {name}", 0, None, note)))


def _load(built: BuiltEngine, folder: Path) -> Any:
    return find_backend(built.backend).load(folder, built)


def with_backend(recipe: Recipe, backend: str) -> Recipe:
    """Return the recipe served by another backend."""
    return dataclasses.replace(recipe, serving=dataclasses.replace(recipe.serving, backend=backend))
