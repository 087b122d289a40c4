"""TensorRT 11: engines for the GPU of this machine, strongly typed, with a timing cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from engines.backends.built_engine import BuiltEngine, EngineWeight
from engines.backends.checks import check_options
from engines.backends.contract import Notify
from engines.backends.engine_spec import BuildSpec, Option, Profile, Rows
from engines.backends.graph_io import graph_io
from engines.backends.tensorrt.library import NAME, OPTIONS, import_tensorrt
from engines.backends.trt.gpu import gpu
from engines.backends.trt.plan import Plan, build_plan, int8_statuses, profile_shapes, write_layers
from engines.backends.trt.worker import PlanJob, Settings
from export.io import read_graph
from export.lowering import LoweredGraph, TensorRTWeights, lower_for_tensorrt
from graphs.base.errors import UgsepError, nearest

_HARDWARE = {"none": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
_WEIGHTS: dict[str, TensorRTWeights] = {"w8a16": "int8", "fp16": "fp16"}


def lower(spec: BuildSpec, folder: Path, progress: Notify) -> LoweredGraph:
    """Lower the graph for a strongly typed network.

    Raises:
        UgsepError: TensorRT's libraries or a GPU are missing, an option is wrong, or the source is missing or broken.
    """
    import_tensorrt()
    check_values(check_options(NAME, spec.options, OPTIONS))
    capability = _capability()
    progress(f"tensorrt: lowering {spec.side} {spec.precision} for compute capability {capability}")
    return lower_for_tensorrt(spec.onnx, folder / f"{spec.side}.onnx", _WEIGHTS[spec.precision])


def compile(spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify) -> BuiltEngine:
    """Compile ``<side>.engine`` for this machine's GPU and list its layers in ``<side>.layers.json``.

    ``spec.scratch`` keeps the timing cache, so that later builds do not time the same kernels again.

    Raises:
        UgsepError: TensorRT's libraries or a GPU are missing, an option is wrong, the graph does not compile, or an
            int8 weight was folded to FP16.
    """
    trt = import_tensorrt()
    options = check_options(NAME, spec.options, OPTIONS)
    capability = _capability()
    if options["buckets"] and spec.side != "user" and len(spec.profiles) == 1:
        spec = dataclasses.replace(spec, profiles=buckets(spec.profiles[0]))
    progress(f"tensorrt: compiling {spec.side} {spec.precision} for compute capability {capability}")
    timing = None if spec.scratch is None else spec.scratch / f"tensorrt-{trt.__version__}-sm{capability}.timing"
    settings = dataclasses.replace(settings_of(options), timing_cache=None if timing is None else str(timing))
    if timing is not None:
        timing.parent.mkdir(parents=True, exist_ok=True)
    inputs, outputs = graph_io(read_graph(lowered.path))
    plan = _plan(spec, lowered, out_dir, settings)
    statuses = _statuses(spec, lowered, plan)
    folded = _folded(statuses)
    notes: tuple[str, ...] = ()
    if folded and options["int8_plugin"]:
        progress(f"tensorrt: {len(folded)} int8 weights were folded to FP16; compiling again with the int8 plugin")
        notes = (f"int8 plugin runs {', '.join(sorted(folded))}",)
        with_plugin = lower_for_tensorrt(spec.onnx, lowered.path, _WEIGHTS[spec.precision], folded)
        plan = _plan(spec, with_plugin, out_dir, dataclasses.replace(settings, plugin=capability))
        statuses = _statuses(spec, with_plugin, plan, folded)
        folded = _folded(statuses)
    if folded:
        raise UgsepError(
            f"{spec.onnx}: TensorRT folded {len(folded)} int8 weights to FP16 ({', '.join(sorted(folded)[:3])}), so "
            "the engine would not be w8a16; build fp16, or use a GPU generation with int8 weight kernels"
        )
    engine = out_dir / f"{spec.side}.engine"
    layers = write_layers(out_dir / f"{spec.side}.layers.json", plan.layers)
    return BuiltEngine(
        backend=NAME,
        side=spec.side,
        precision=spec.precision,
        files=(engine.name, layers.name),
        bytes=engine.stat().st_size + layers.stat().st_size,
        inputs=inputs,
        outputs=outputs,
        session={"version_compatible": options["version_compatible"]},
        requires={
            "compute_capability": f"{capability}{'+' if options['hardware_compatible'] == 'ampere-plus' else ''}"
        },
        tools={NAME: str(trt.__version__)},
        profiles=spec.profiles,
        weights=statuses,
        figures={
            "engine_bytes": float(plan.bytes),
            "weight_bytes": float(plan.weight_bytes),
            "device_memory_bytes": float(plan.device_bytes),
            "layers": float(len(plan.layers)),
        },
        notes=notes,
    )


def _capability() -> str:
    capability, reason = gpu()
    if capability is None:
        raise UgsepError(f"backend 'tensorrt' builds only on the GPU it builds for: {reason}")
    return capability


def _plan(spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, settings: Settings) -> Plan:
    """Compile a lowered graph to ``<side>.engine``."""
    profiles = profile_shapes(graph_io(read_graph(lowered.path))[0], spec.profiles)
    return build_plan(PlanJob(NAME, str(lowered.path), str(out_dir / f"{spec.side}.engine"), profiles, settings))


def _statuses(
    spec: BuildSpec, lowered: LoweredGraph, plan: Plan, plugin: frozenset[str] = frozenset()
) -> tuple[EngineWeight, ...]:
    """Return how each int8 weight runs; those of ``plugin`` run in our own kernel."""
    if spec.precision != "w8a16":
        return ()
    names = [n.input[0] for n in read_graph(spec.onnx).graph.node if n.op_type == "DequantizeLinear"]
    return int8_statuses(plan.layers, {n: lowered.parts.get(n, (n,))[0] for n in names}, plugin)


def _folded(statuses: tuple[EngineWeight, ...]) -> frozenset[str]:
    return frozenset(status.name for status in statuses if status.status == "folded-to-float")


def settings_of(options: Mapping[str, Option]) -> Settings:
    """Return the settings of the compiling process; networks are always strongly typed."""
    return Settings(
        optimization_level=int(options["optimization_level"]),
        hardware_compatibility=_HARDWARE[str(options["hardware_compatible"])],
        version_compatible=bool(options["version_compatible"]),
        refit=bool(options["refit"]),
        workspace_bytes=int(options["workspace_mb"]) << 20,
    )


def buckets(profile: Profile) -> tuple[Profile, ...]:
    """Cut a profile into disjoint ones, largest first, ending at ``max``, ``opt``, ``opt / 4`` and 1 candidates."""
    rows = profile.candidates
    ends = sorted({end for end in (1, rows.opt // 4, rows.opt, rows.max) if end >= rows.min})
    starts = [rows.min, *(end + 1 for end in ends[:-1])]
    cut = [Profile(profile.users, Rows(a, z, z)) for a, z in zip(starts, ends, strict=True)]
    return tuple(reversed(cut))


def check_values(options: Mapping[str, Option]) -> None:
    """Refuse option values TensorRT does not know.

    Raises:
        UgsepError: an optimization level outside 0..5, an unknown compatibility, a negative workspace.
    """
    level, hardware = int(options["optimization_level"]), str(options["hardware_compatible"])
    if not 0 <= level <= 5:
        raise UgsepError(f"backend 'tensorrt': optimization_level is {level}; give 0 to 5")
    if hardware not in _HARDWARE:
        raise UgsepError(f"backend 'tensorrt': hardware_compatible '{hardware}'{nearest(hardware, _HARDWARE)}")
    if int(options["workspace_mb"]) < 0:
        raise UgsepError(f"backend 'tensorrt': workspace_mb is {options['workspace_mb']}; give 0 or more")
