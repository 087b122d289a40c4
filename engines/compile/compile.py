"""Compile engines: pick the ONNX file of a precision, and build it with a backend through the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.backends.build import build_engine
from engines.backends.built_engine import BuiltEngine
from engines.backends.checks import check_precision
from engines.backends.contract import Runner
from engines.backends.engine_spec import BuildSpec, Profile, Rows
from engines.backends.table import find_backend
from engines.bundle.manifest import Engine
from engines.bundle.provenance import ENGINE_CODE, code_sha256, tool_versions
from engines.compile.cache import cached_build, engine_key
from engines.recipes.recipe import Recipe
from graphs.base.errors import UgsepError
from graphs.base.names import GraphSide
from graphs.base.progress import Progress, ProgressCallback, silent

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


def build_engines(
    recipe: Recipe,
    plans: Sequence[EnginePlan],
    onnx: Mapping[GraphSide, Path],
    work: Path,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> tuple[list[Engine], list[str]]:
    """Build the planned engines and those for ``serving.compile_for``; return them and notes on those left out."""
    built: list[Engine] = []
    notes: list[str] = []
    wanted = list(plans)
    for name in recipe.serving.compile_for:
        available = find_backend(name).probe()
        if available.can_build:
            wanted += [EnginePlan("user", name, "w8a16"), EnginePlan("item", name, "w8a16")]
        else:
            notes.append(f"{name}: not built on this machine: {available.reason}")
            progress(Progress("build", 0, None, notes[-1]))
    for plan in dict.fromkeys(wanted):
        target = work / plan.directory
        target.mkdir(parents=True)
        built.append(Engine(plan.directory, compile_engine(recipe, plan, onnx[plan.side], target, cache, progress)))
    return built, notes


def compile_engine(
    recipe: Recipe,
    plan: EnginePlan,
    onnx: Path,
    folder: Path,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> BuiltEngine:
    """Build one engine into ``folder`` from the FP32 file ``onnx`` or the quantized file next to it.

    With a ``cache`` directory, an engine with the same key is copied from there.

    Raises:
        UgsepError: the backend does not support the precision, or the build failed.
    """
    module = find_backend(plan.backend)
    variant = check_precision(plan.backend, module, plan.precision)
    source = onnx if variant == "fp32" else onnx.with_name(f"{plan.side}.{variant}.onnx")
    largest = max(recipe.serving.max_candidates, *recipe.serving.candidates)
    profile = Profile(Rows(1, 1, recipe.serving.max_users), Rows(1, max(recipe.serving.candidates), largest))
    options = dict(recipe.serving.options.get(plan.backend, {}))
    if "threads" in module.OPTIONS:
        options.setdefault("threads", recipe.serving.threads)
    # All engines of a backend share kernel timings, so they are stored next to the entries.
    scratch = cache / _SCRATCH if cache is not None else None
    spec = BuildSpec(plan.side, source, plan.precision, (profile,), options, scratch)

    def tell(note: str) -> None:
        progress(Progress(f"build {plan.backend}", 0, None, note))

    if cache is None:
        return build_engine(module, spec, folder, tell)
    tools = {**tool_versions(), "code": code_sha256(ENGINE_CODE)}
    key = engine_key(plan.backend, spec, tools, module.target())
    built, found = cached_build(cache, key, folder, lambda out: build_engine(module, spec, out, tell), tell)
    if found:
        tell(f"{plan.backend}: {plan.side} {plan.precision} from the engine cache")
    return built


def load_built(built: BuiltEngine, folder: Path) -> Runner:
    """Load an engine that was built into ``folder``."""
    return find_backend(built.backend).load(folder, built)
