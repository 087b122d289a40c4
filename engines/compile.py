"""Compile engines: pick the ONNX view a precision reads, and build it with a backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.backend import BuildSpec, BuiltEngine, Profile, Rows, Runner, check_precision, find_backend
from engines.manifest import Engine
from engines.recipe import Recipe
from export.metadata import GraphSide
from graphs.progress import Progress, ProgressCallback, silent


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
            engine = compile_engine(recipe, side, precision, onnx[side], target, progress, backend=name)
            built.append(Engine(relative.as_posix(), engine))
    return built, notes


def compile_engine(
    recipe: Recipe,
    side: GraphSide,
    precision: str,
    onnx: Path,
    folder: Path,
    progress: ProgressCallback = silent,
    backend: str = "onnxruntime",
) -> BuiltEngine:
    """Build one engine into ``folder`` from the FP32 file ``onnx`` or its quantized view beside it.

    Raises:
        UgsepError: a precision the backend does not build, or the backend's own reasons.
    """
    name, module = backend, find_backend(backend)
    variant = check_precision(name, module, precision)
    source = onnx if variant == "fp32" else onnx.with_name(f"{side}.{variant}.onnx")
    largest = max(recipe.serving.max_candidates, *recipe.serving.candidates)
    profile = Profile(Rows(1, 1, 1), Rows(1, max(recipe.serving.candidates), largest))
    options = dict(recipe.serving.options.get(name, {}))
    if name == "onnxruntime":
        options.setdefault("threads", recipe.serving.threads)
    spec = BuildSpec(side, source, precision, (profile,), options)
    return module.build(spec, folder, lambda note: progress(Progress(f"build {name}", 0, None, note)))


def load_built(built: BuiltEngine, folder: Path) -> Runner:
    """Load an engine that was just built into ``folder``."""
    return find_backend(built.backend).load(folder, built)
