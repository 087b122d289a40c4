"""Compile engines: pick the ONNX file of a precision, and build it with a backend through the cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.backends.build import build_engine, compile_graph
from engines.backends.built_engine import BuiltEngine
from engines.backends.checks import check_precision
from engines.backends.contract import Backend, Runner
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.table import find_backend
from engines.bundle.provenance import ENGINE_CODE, code_sha256, tool_versions
from engines.compile.cache import cached_build, engine_key, has_entry
from engines.recipes.recipe import Recipe
from graphs.base.errors import UgsepError
from graphs.base.names import GraphSide
from graphs.base.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from export.lowering import LoweredGraph

_SCRATCH = ".scratch"


@dataclass(frozen=True)
class EnginePlan:
    """One engine to build: side, backend and precision."""

    side: GraphSide
    backend: str
    precision: str

    @property
    def directory(self) -> str:
        """The engine's directory in a bundle."""
        return f"engines/{self.backend}/{self.side}.{self.precision}"


def serving_plans(recipe: Recipe) -> tuple[EnginePlan, ...]:
    """Return the two engines that serve a recipe with a named backend.

    Raises:
        UgsepError: an unknown backend, a side without a precision, or a precision the backend does not support.
    """
    serving = recipe.serving
    backend = find_backend(serving.backend)
    for side in ("user", "item"):
        if side not in serving.precision:
            raise UgsepError(
                f"serving.precision has no precision for the {side} side; give both, as in "
                "serving.precision={user: w8a8-dynamic, item: w8a32}"
            )
    for precision in serving.precision.values():
        check_precision(serving.backend, backend, precision)
    return (
        EnginePlan("user", serving.backend, serving.precision["user"]),
        EnginePlan("item", serving.backend, serving.precision["item"]),
    )


@dataclass(frozen=True)
class LoweredEngine:
    """An engine to compile: ``graph`` is its lowered graph, or None if the cache holds the engine.

    ``key`` is its cache key, "" without a cache; ``seconds`` is what lowering took.
    """

    plan: EnginePlan
    spec: BuildSpec
    graph: LoweredGraph | None
    key: str = ""
    seconds: float = 0.0


def planned_engines(
    recipe: Recipe, plans: Sequence[EnginePlan], progress: ProgressCallback = silent
) -> tuple[list[EnginePlan], list[str]]:
    """Return the given plans and those for ``serving.compile_for``, and a note for each that cannot be built here."""
    wanted, notes = list(plans), []
    for name in recipe.serving.compile_for:
        available = find_backend(name).probe()
        if available.can_build:
            wanted += [EnginePlan("user", name, "w8a16"), EnginePlan("item", name, "w8a16")]
        else:
            notes.append(f"{name}: not built here: {available.reason}")
            progress(Progress("build", 0, None, notes[-1]))
    return list(dict.fromkeys(wanted)), notes


def lower_engine(
    recipe: Recipe,
    plan: EnginePlan,
    onnx: Path,
    folder: Path,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> LoweredEngine:
    """Lower the FP32 file ``onnx``, or the quantized variant next to it, into ``folder`` for the backend of a plan.

    Nothing is lowered if the ``cache`` directory holds the engine.

    Raises:
        UgsepError: a precision the backend does not build, or the backend's own reasons.
    """
    backend = find_backend(plan.backend)
    spec = _build_spec(recipe, plan, backend, onnx, cache)
    key = ""
    if cache is not None:
        tools = {**tool_versions(), "code": code_sha256(ENGINE_CODE)}
        key = engine_key(plan.backend, spec, tools, backend.target())
        if has_entry(cache, key):
            return LoweredEngine(plan, spec, None, key)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    graph = backend.lower(spec, folder, _notify(plan, progress))
    return LoweredEngine(plan, spec, graph, key, time.perf_counter() - started)


def compile_lowered(
    lowered: LoweredEngine, folder: Path, cache: Path | None = None, progress: ProgressCallback = silent
) -> BuiltEngine:
    """Compile a lowered engine into ``folder``, or copy it from the ``cache`` directory.

    Raises:
        UgsepError: the backend's own reasons.
    """
    plan, tell = lowered.plan, _notify(lowered.plan, progress)
    folder.mkdir(parents=True, exist_ok=True)

    def build(out: Path) -> BuiltEngine:
        backend = find_backend(plan.backend)
        if lowered.graph is None:  # the cache held it, but damaged
            return build_engine(backend, lowered.spec, out, tell)
        return compile_graph(backend, lowered.spec, lowered.graph, out, tell, lowered.seconds)

    if cache is None:
        return build(folder)
    built, found = cached_build(cache, lowered.key, folder, build, tell)
    if found:
        tell(f"{plan.backend}: {plan.side} {plan.precision} from the engine cache")
    return built


def compile_engine(
    recipe: Recipe,
    plan: EnginePlan,
    onnx: Path,
    folder: Path,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> BuiltEngine:
    """Lower and compile one engine into ``folder``; see ``lower_engine`` and ``compile_lowered``."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lowered-") as scratch:
        lowered = lower_engine(recipe, plan, onnx, Path(scratch), cache, progress)
        return compile_lowered(lowered, folder, cache, progress)


def _build_spec(recipe: Recipe, plan: EnginePlan, backend: Backend, onnx: Path, cache: Path | None) -> BuildSpec:
    variant = check_precision(plan.backend, backend, plan.precision)
    source = onnx if variant == "fp32" else onnx.with_name(f"{plan.side}.{variant}.onnx")
    largest = max(recipe.serving.max_candidates, *recipe.serving.candidates)
    profile = Profile(Rows(1, 1, recipe.serving.max_users), Rows(1, max(recipe.serving.candidates), largest))
    options = dict(recipe.serving.options.get(plan.backend, {}))
    if "threads" in backend.OPTIONS:
        options.setdefault("threads", recipe.serving.threads)
    # Kernel timings are shared by all engines of a backend and belong to none, so they lie next to the entries.
    scratch = cache / _SCRATCH if cache is not None else None
    half_state = recipe.serving.state == "fp16" and plan.side != "full"  # the whole model has no state
    return BuildSpec(plan.side, source, plan.precision, (profile,), options, scratch, half_state)


def _notify(plan: EnginePlan, progress: ProgressCallback) -> Callable[[str], None]:
    return lambda note: progress(Progress(f"build {plan.backend}", 0, None, note))


def load_built(built: BuiltEngine, folder: Path) -> Runner:
    """Load an engine that was built into ``folder``."""
    return find_backend(built.backend).load(folder, built)
