"""TensorRT 11: engines for the GPU of this machine, strongly typed, with a timing cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from engines.backends.built_engine import BuiltEngine, EngineWeight, TensorSpec
from engines.backends.checks import check_options
from engines.backends.contract import Progress
from engines.backends.engine_spec import BuildSpec, Option, Profile, Rows
from engines.backends.graph_io import graph_io
from engines.backends.tensorrt.library import NAME, OPTIONS, import_tensorrt
from engines.backends.trt.gpu import gpu
from engines.backends.trt.plan import Plan, build_plan, int8_statuses, profile_shapes, write_layers
from engines.backends.trt.worker import Job, Settings
from export.io import read_graph
from export.lowering.tensorrt import Weights, lower_for_tensorrt
from graphs.base.errors import UgsepError, nearest

_HARDWARE = {"none": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
_WEIGHTS: dict[str, Weights] = {"w8a16": "int8", "fp16": "fp16"}


def build(spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Compile ``<side>.engine`` for this machine's GPU and list its layers in ``<side>.layers.json``.

    ``spec.scratch`` keeps the timing cache, so that a later build times no kernel twice.

    Raises:
        UgsepError: TensorRT's libraries or a GPU are missing, an option is wrong, the graph does not compile, or an
            int8 weight was folded to FP16.
    """
    trt = import_tensorrt()
    options = check_options(NAME, spec.options, OPTIONS)
    check_values(options)
    capability, reason = gpu()
    if capability is None:
        raise UgsepError(f"backend 'tensorrt' builds only on the GPU it builds for: {reason}")
    if options["buckets"] and spec.side != "user" and len(spec.profiles) == 1:
        spec = dataclasses.replace(spec, profiles=buckets(spec.profiles[0]))
    started = time.perf_counter()
    progress(f"tensorrt: compiling {spec.side} {spec.precision} for compute capability {capability}")
    timing = None if spec.scratch is None else spec.scratch / f"tensorrt-{trt.__version__}-sm{capability}.timing"
    plan, inputs, outputs, statuses = _compile(spec, out_dir, options, timing)
    folded = frozenset(status.name for status in statuses if status.status == "folded-to-float")
    notes: tuple[str, ...] = ()
    if folded and options["int8_plugin"]:
        progress(f"tensorrt: {len(folded)} int8 weights were folded to FP16; compiling again with the int8 plugin")
        notes = (f"int8 plugin runs {', '.join(sorted(folded))}",)
        plan, inputs, outputs, statuses = _compile(spec, out_dir, options, timing, folded, capability)
        folded = frozenset(status.name for status in statuses if status.status == "folded-to-float")
    if folded:
        raise UgsepError(
            f"{spec.onnx}: TensorRT folded {len(folded)} int8 weights to FP16 ({', '.join(sorted(folded)[:3])}), so "
            "this is no w8a16 engine; build fp16, or use a GPU generation with int8 weight kernels"
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
            "build_seconds": time.perf_counter() - started,
            "engine_bytes": float(plan.bytes),
            "weight_bytes": float(plan.weight_bytes),
            "device_memory_bytes": float(plan.device_bytes),
            "layers": float(len(plan.layers)),
        },
        notes=notes,
    )


def _compile(
    spec: BuildSpec,
    out_dir: Path,
    options: Mapping[str, Option],
    timing: Path | None,
    plugin: frozenset[str] = frozenset(),
    capability: str | None = None,
) -> tuple[Plan, tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[EngineWeight, ...]]:
    """Compile once to ``<side>.engine``; the int8 weights of ``plugin`` run in our own kernel for ``capability``.

    Returns the plan, the engine's inputs and outputs, and what became of each int8 weight.
    """
    scratch = out_dir / f".{spec.side}.lowered.onnx"
    if timing is not None:
        timing.parent.mkdir(parents=True, exist_ok=True)
    try:
        lowered = lower_for_tensorrt(spec.onnx, scratch, _WEIGHTS[spec.precision], plugin)
        inputs, outputs = graph_io(read_graph(scratch))
        settings = dataclasses.replace(
            settings_of(options),
            timing_cache=None if timing is None else str(timing),
            plugin=capability if plugin else None,
        )
        engine = out_dir / f"{spec.side}.engine"
        plan = build_plan(Job(NAME, str(scratch), str(engine), profile_shapes(inputs, spec.profiles), settings))
    finally:
        for path in (scratch, scratch.with_name(f"{scratch.name}.data")):
            path.unlink(missing_ok=True)
    if spec.precision != "w8a16":
        return plan, inputs, outputs, ()
    names = [n.input[0] for n in read_graph(spec.onnx).graph.node if n.op_type == "DequantizeLinear"]
    return plan, inputs, outputs, int8_statuses(plan.layers, {n: lowered.merged.get(n, n) for n in names}, plugin)


def settings_of(options: Mapping[str, Option]) -> Settings:
    """Return the options of this backend as its compiling process takes them. Networks are always strongly typed."""
    return Settings(
        optimization_level=int(options["optimization_level"]),
        hardware_compatibility=_HARDWARE[str(options["hardware_compatible"])],
        version_compatible=bool(options["version_compatible"]),
        refit=bool(options["refit"]),
        workspace_bytes=int(options["workspace_mb"]) << 20,
    )


def buckets(profile: Profile) -> tuple[Profile, ...]:
    """Cut a profile into disjoint ones, largest first: up to its most, its usual, a quarter of that, and one row."""
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
